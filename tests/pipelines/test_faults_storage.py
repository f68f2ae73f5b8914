"""The fault matrix: failing disks and servers, damaged files."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fault_matrix import Matrix
from tests.support.gcs_proxy import GcsProxy
from transforms.core import storage

SHARD, COMMIT = "images/shards/000/images-000003.tar", "images/commits/000/images-000003.json"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 224 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=224k", "tmpfs", str(disk)]) != 0:
        pytest.skip("this machine does not allow mounting a tmpfs")
    yield disk
    subprocess.check_call(["umount", str(disk)])


def test_full_disk(
    small_disk: Path,
    tmp_path: Path,
    undisturbed: list[str],
    blocks: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    matrix = Matrix(str(small_disk / "run"), tmp_path / "images.yaml", undisturbed)
    assert matrix.again() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the disk is full" in said
    assert "run the same command again" in said
    assert 0 < len(storage.list_files(f"{matrix.run}/images/commits")) < len(undisturbed)
    subprocess.check_call(["mount", "-o", "remount,size=8m", str(small_disk)])
    matrix.ends_as_undisturbed()


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_gcs_answers_503_for_a_while(gcs_matrix: Matrix, proxy: GcsProxy) -> None:
    proxy.unavailable = lambda number: number % 7 < 3
    code, said = gcs_matrix.suffer("none", {"STORAGE_EMULATOR_HOST": proxy.url})
    assert code == 0, said
    assert proxy.answers[503] > 20
    gcs_matrix.ends_as_undisturbed()


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_gcs_answers_503_for_good(gcs_matrix: Matrix, proxy: GcsProxy) -> None:
    proxy.unavailable = lambda number: number > 60
    code, said = gcs_matrix.suffer("none", {"STORAGE_EMULATOR_HOST": proxy.url})
    assert code == 1
    assert "503" in said.splitlines()[-1]
    assert "run the same command again" in said.splitlines()[-1]
    assert len(storage.list_files(f"{gcs_matrix.run}/images/commits")) > 0
    gcs_matrix.ends_as_undisturbed()


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_gcs_upload_cut_off_half_way(gcs_matrix: Matrix, proxy: GcsProxy) -> None:
    proxy.cuts = lambda number: number % 3 > 0
    code, said = gcs_matrix.suffer("none", {"STORAGE_EMULATOR_HOST": proxy.url})
    assert code == 0, said
    assert proxy.answers[0] > 20
    gcs_matrix.ends_as_undisturbed()


def garble(content: bytes) -> bytes:
    return content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :]


def halve(content: bytes) -> bytes:
    return content[: len(content) // 2]


def leave_out_the_end(content: bytes) -> bytes:
    """Cut a tar between two members, where Python's tarfile notices nothing."""
    return content.rstrip(b"\0")[:-512].ljust(len(content) // 512 // 2 * 512, b"\0")


@pytest.mark.parametrize(
    ("name", "damage"),
    [(SHARD, garble), (SHARD, halve), (SHARD, leave_out_the_end), (COMMIT, halve)],
)
def test_damaged_file_of_a_committed_shard(
    matrix: Matrix, name: str, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert matrix.again() == 0
    _overwrite(f"{matrix.run}/{name}", damage(storage.read_bytes(f"{matrix.run}/{name}")))
    assert matrix.verify() == 1
    said = capsys.readouterr()
    assert "images-000003" in said.out
    assert "repair=true" in said.err.splitlines()[-1]
    assert matrix.verify("repair=true") == 1
    assert matrix.verify() == 1, "a shard is missing now"
    matrix.ends_as_undisturbed()


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("number", range(1, 6))
def test_killed_repair(matrix: Matrix, number: int) -> None:
    """It deletes _SUCCESS, index, shard, dead letters and commit record, and dies after one."""
    assert matrix.again() == 0
    _overwrite(f"{matrix.run}/{SHARD}", garble(storage.read_bytes(f"{matrix.run}/{SHARD}")))
    repair = ["verify", matrix.run, "repair=true"]
    # The first deletion is that of the file by which verify reads the clock of the storage.
    code, said = matrix.suffer(f"kill_while_deleting:{number + 1}", job=repair)
    assert code == -signal.SIGKILL, said
    assert storage.exists(f"{matrix.run}/{SHARD}") == (number < 3)
    assert storage.exists(f"{matrix.run}/{COMMIT}") == (number < 5)
    assert matrix.verify() == 1
    assert matrix.again() == 0
    if matrix.verify() != 0:  # The damage is still there, and is not taken for whole.
        assert number < 3
        assert matrix.verify("repair=true") == 1
    matrix.ends_as_undisturbed()


def test_a_damaged_commit_record_does_not_cost_its_shard(matrix: Matrix) -> None:
    assert matrix.again() == 0
    _overwrite(f"{matrix.run}/{COMMIT}", halve(storage.read_bytes(f"{matrix.run}/{COMMIT}")))
    before = os.stat(f"{matrix.run}/{SHARD}")
    assert matrix.verify("repair=true") == 1
    matrix.ends_as_undisturbed()
    assert os.stat(f"{matrix.run}/{SHARD}").st_ino == before.st_ino, "it was adopted"


def test_damaged_commit_record_stops_the_index(
    matrix: Matrix, capsys: pytest.CaptureFixture[str]
) -> None:
    assert matrix.again() == 0
    storage.delete(f"{matrix.run}/images/_SUCCESS")
    _overwrite(f"{matrix.run}/{COMMIT}", b'{"shard": 3')
    assert matrix.again() == 1
    assert "000003.json is damaged" in capsys.readouterr().err.splitlines()[-1]
    assert matrix.verify("repair=true") == 1
    matrix.ends_as_undisturbed()


@pytest.mark.parametrize("damage", [halve, leave_out_the_end])
def test_truncated_tar_of_a_dead_worker(
    matrix: Matrix, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert matrix.again() == 0
    for name in ("images/_SUCCESS", "images/index.parquet", COMMIT):
        storage.delete(f"{matrix.run}/{name}")
    _overwrite(f"{matrix.run}/{SHARD}", damage(storage.read_bytes(f"{matrix.run}/{SHARD}")))
    assert matrix.again() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "is damaged and not committed" in said
    assert "delete it and run again" in said
    assert matrix.verify("repair=true") == 1
    matrix.ends_as_undisturbed()


@pytest.mark.parametrize("name", ["images/index.parquet", "images/_SUCCESS"])
def test_lost_index(matrix: Matrix, name: str) -> None:
    from pipelines.__main__ import main

    assert matrix.again() == 0
    before = storage.read_bytes(f"{matrix.run}/{name}")
    storage.delete(f"{matrix.run}/{name}")
    assert matrix.verify() == 1
    assert main(["index", matrix.run]) == 0
    assert storage.read_bytes(f"{matrix.run}/{name}") == before
    matrix.ends_as_undisturbed()


def _overwrite(path: str, content: bytes) -> None:
    os.unlink(path)
    Path(path).write_bytes(content)
