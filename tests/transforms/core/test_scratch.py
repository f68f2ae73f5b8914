import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import pytest

from transforms.core import scratch
from transforms.core.errors import StorageError
from transforms.core.scratch import scratch_folder, write_details


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch._remove_abandoned.cache_clear()


def test_a_folder_goes_when_its_work_ends(tmp_path: Path) -> None:
    with scratch_folder() as folder:
        (Path(folder) / "shard.tar").write_bytes(b"x")
        assert Path(folder).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_folder_goes_when_its_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), scratch_folder():
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, taken = fcntl.flock, list[Path]()

    def too_late(lock: IO[str], operation: int) -> None:
        if not taken:
            taken.append(Path(lock.name).parent)
            shutil.rmtree(taken[0])
        flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with scratch_folder() as folder:
        assert Path(folder).is_dir()
        assert Path(folder) != taken[0]
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    code = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from transforms.core.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    print(folder, flush=True)\n"
        "    sys.stdin.read() if sys.argv[2] == 'live' else os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    living = subprocess.Popen(
        [*command, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert living.stdout is not None
    living_folder = living.stdout.readline().strip()
    killed = subprocess.run([*command, "die"], stdout=subprocess.PIPE, text=True)
    killed_folder = killed.stdout.strip()
    assert Path(killed_folder).exists()
    with scratch_folder():
        assert not Path(killed_folder).exists()
        assert Path(living_folder).exists()
    living.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_lock_is_abandoned_when_it_is_old(tmp_path: Path) -> None:
    """A process was killed before it could lock its folder."""
    old, new = tmp_path / f"{scratch.PREFIX}old", tmp_path / f"{scratch.PREFIX}new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, time.time() - 2 * scratch._ABANDONED_S))
    with scratch_folder():
        assert not old.exists()
        assert new.exists()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(prefix: str) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), prefix)

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with (
        pytest.raises(StorageError, match="the disk is full; free some space") as caught,
        scratch_folder(),
    ):
        raise AssertionError
    assert str(tmp_path) in str(caught.value)


def test_only_the_newest_details_are_kept(tmp_path: Path) -> None:
    before = [write_details(f"error {number}") for number in range(scratch.DETAILS_KEPT)]
    for age, path in enumerate(reversed(before), 1):
        os.utime(path, (0, time.time() - age))
    other = tmp_path / "of-another-program.log"
    other.touch()
    newest = write_details("the newest error")
    assert Path(newest).read_text() == "the newest error"
    assert set(tmp_path.iterdir()) == {other, *map(Path, before[1:]), Path(newest)}
