import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.publishers import publish_at_once
from transforms.core import storage
from transforms.core.errors import ConfigError, MissingFileError, StorageError
from transforms.core.storage import object_store


def test_a_name_is_published_once(any_storage: str) -> None:
    url = storage.join(any_storage, "shards/000/a.bin")
    assert storage.publish_bytes(b"first", url)
    assert not storage.publish_bytes(b"second", url)
    assert storage.read_bytes(url) == b"first"


def test_a_file_is_published_once(any_storage: str, tmp_path: Path) -> None:
    large = os.urandom(6 * 2**20)  # larger than what gcsfs uploads in one request
    source = tmp_path / "source.bin"
    source.write_bytes(large)
    url = storage.join(any_storage, "a.bin")
    assert storage.publish_file(str(source), url)
    assert not storage.publish_file(str(source), url)
    target = tmp_path / "copy.bin"
    storage.download(url, str(target))
    assert target.read_bytes() == large


def test_one_of_many_threads_publishes(any_storage: str) -> None:
    url = storage.join(any_storage, "contested")
    won = publish_at_once(url)
    assert len(won) == 1
    assert storage.read_bytes(url) == str(won[0]).encode()


def test_replace_and_list(any_storage: str) -> None:
    assert storage.list_files(any_storage) == {}
    storage.replace_bytes(b"old", storage.join(any_storage, "index"))
    storage.replace_bytes(b"newer", storage.join(any_storage, "index"))
    storage.publish_bytes(b"x", storage.join(any_storage, "a/b/c"))
    assert storage.list_files(any_storage) == {"index": 5, "a/b/c": 1}
    assert storage.exists(storage.join(any_storage, "index"))
    assert not storage.exists(storage.join(any_storage, "other"))


def test_the_disk_has_a_files_content_before_its_name_and_then_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut could leave empty files with final names."""
    done: list[str] = []

    def watch(name: str) -> None:
        work = getattr(os, name)

        def watched(*arguments: object) -> object:
            done.append(name)
            return work(*arguments)

        monkeypatch.setattr(os, name, watched)

    for name in ("fsync", "link", "replace"):
        watch(name)
    storage.replace_bytes(b"content", str(tmp_path / "replaced"))
    assert done == ["fsync", "replace", "fsync"]
    done.clear()
    (tmp_path / "source").write_bytes(b"content")
    assert storage.publish_file(str(tmp_path / "source"), str(tmp_path / "published"))
    assert done == ["fsync", "link", "fsync"]


@pytest.mark.parametrize("size", [1001, 6500])
def test_a_large_file_goes_up_in_parts_and_appears_whole(
    gcs_bucket: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """6,500 bytes in parts of 100 are more parts than the server composes."""
    from gcsfs.core import GCSFileSystem

    monkeypatch.setattr(object_store, "_PART_BYTES", 100)
    url, content = f"{gcs_bucket}/run/large", os.urandom(size)
    storage.replace_bytes(b"old", url)
    merge, pieces = GCSFileSystem.merge, []

    def watched(self: GCSFileSystem, path: str, parts: list[str]) -> None:
        pieces.extend(parts)
        assert len(storage.list_unfinished(gcs_bucket)) == len(parts)
        assert storage.list_files(gcs_bucket) == {"run/large": 3}, "parts are hidden"
        assert storage.read_bytes(url) == b"old"
        merge(self, path, parts)

    monkeypatch.setattr(GCSFileSystem, "merge", watched)
    storage.replace_bytes(content, url)
    assert storage.read_bytes(url) == content
    assert 10 < len(pieces) <= 32
    assert storage.list_unfinished(gcs_bucket) == {}


def test_an_upload_in_parts_that_fails_leaves_the_old_file_and_no_parts(
    gcs_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{gcs_bucket}/large"
    storage.replace_bytes(b"old", url)
    files, tries = object_store.filesystem(), iter(range(100))
    pipe = files.pipe_file

    def broken(path: str, data: bytes) -> None:
        if next(tries) == 3:
            raise OSError(errno.ECONNRESET, "Connection reset by peer")
        pipe(path, data)

    monkeypatch.setattr(object_store, "_PART_BYTES", 10)
    monkeypatch.setattr(files, "pipe_file", broken)
    with pytest.raises(StorageError, match=r"cannot write .*large: Connection reset"):
        storage.replace_bytes(bytes(200), url)
    assert storage.read_bytes(url) == b"old"
    assert storage.list_unfinished(gcs_bucket) == {}


def test_files_are_abandoned_by_the_clock_of_their_storage(
    any_storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish_bytes(b"whole", f"{any_storage}/shards/whole")
    storage.publish_bytes(b"half", f"{any_storage}/shards/.half.part")
    hour, now = 3600.0, time.time()
    assert storage.list_abandoned(any_storage, hour) == []
    time.sleep(0.05)
    assert storage.list_abandoned(any_storage, 0.01) == ["shards/.half.part"]
    for wrong in (now - 9 * hour, now + 9 * hour):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: wrong)
        assert storage.list_abandoned(any_storage, hour) == []
        assert storage.list_abandoned(any_storage, 0.01) == ["shards/.half.part"]
    assert storage.list_unfinished(any_storage).keys() == {"shards/.half.part"}


def test_storage_that_cannot_be_written_has_our_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".half.part").write_bytes(b"half")

    def refused(path: str, data: bytes) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(storage.local, "create", refused)
    assert storage.list_abandoned(str(tmp_path), 3600.0) == []
    monkeypatch.setattr(time, "time", lambda: os.stat(tmp_path / ".half.part").st_mtime + 3601)
    assert storage.list_abandoned(str(tmp_path), 3600.0) == [".half.part"]


def test_update_leaves_what_says_the_same(tmp_path: Path) -> None:
    url = str(tmp_path / "derived")
    storage.update_bytes(b"one", url)
    before = os.stat(url).st_ino
    storage.update_bytes(b"one", url)
    assert os.stat(url).st_ino == before
    storage.update_bytes(b"two", url)
    assert storage.read_bytes(url) == b"two"


def test_listing_goes_through_folders_and_pages(
    any_storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_PAGE", 10)
    names = {f"{folder}/{number:02d}" for folder in ("a", "ab", "c") for number in range(25)}
    names |= {f"{number:02d}" for number in range(12)} | {"a/b/c/d", "aa", "ca/b"}
    started = time.time()
    for name in names:
        storage.publish_bytes(b"12", f"{any_storage}/{name}")
    storage.publish_bytes(b"", f"{any_storage}-beside/f")
    assert storage.list_files(any_storage) == dict.fromkeys(names, 2)
    times = storage.list_times(any_storage)
    assert set(times) == names
    assert all(started - 2 < time_ < time.time() + 2 for time_ in times.values())


@pytest.mark.parametrize("number", [0, 1, 4, 5, 60, 600, 1000])
def test_folders_are_shared_out_among_streams(number: int) -> None:
    names = [f"{folder:03d}/" for folder in range(number)]
    beginnings = object_store._beginnings(set(names))
    taken = [name for b in beginnings for name in names if name.startswith(b)]
    assert sorted(taken) == names, "each folder is in one stream"
    assert min(number, 5) <= len(beginnings) <= 50


def test_delete_is_repeatable(any_storage: str) -> None:
    url = storage.join(any_storage, "a/b")
    storage.publish_bytes(b"x", url)
    storage.publish_bytes(b"x", url + "c")
    storage.delete(url)
    storage.delete(url)
    assert storage.list_files(any_storage) == {"a/bc": 1}
    assert storage.publish_bytes(b"y", url)


def test_a_folder_is_deleted_with_all_that_is_in_it(any_storage: str) -> None:
    for name in ("parts/a/b", "parts/a/c/d", "parts/e", "parts.txt"):
        storage.publish_bytes(b"x", storage.join(any_storage, name))
    for _ in range(2):
        storage.delete_folder(storage.join(any_storage, "parts"))
        assert storage.list_files(any_storage) == {"parts.txt": 1}
    assert not storage.exists(storage.join(any_storage, "parts"))


def test_missing_file_is_a_sentence(any_storage: str, tmp_path: Path) -> None:
    url = storage.join(any_storage, "absent")
    with pytest.raises(MissingFileError, match=r"cannot read .*absent: there is no such"):
        storage.read_bytes(url)
    with pytest.raises(MissingFileError):
        storage.download(url, str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


def test_missing_bucket_is_a_sentence(gcs_bucket: str) -> None:
    with pytest.raises(MissingFileError, match="there is no such bucket"):
        storage.publish_bytes(b"", f"{gcs_bucket}-absent/a")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_made_is_a_sentence() -> None:
    with pytest.raises(MissingFileError, match=r"absent/a: its folder cannot be made"):
        storage.publish_bytes(b"", "/proc/absent/a")


def test_whether_a_folder_can_be_written_leaves_nothing(any_storage: str, tmp_path: Path) -> None:
    storage.check_writable(storage.join(any_storage, "scores"))
    assert storage.list_files(any_storage) == {}
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        storage.check_writable(str(tmp_path / "file" / "scores"))
    assert not storage.exists(storage.join(any_storage, "scores/.writable"))


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    url = str(tmp_path / "out" / "a")
    storage.publish_bytes(b"1", url)
    storage.publish_bytes(b"2", url)
    storage.replace_bytes(b"3", url)
    assert os.listdir(tmp_path / "out") == ["a"]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (FileNotFoundError(2, "No such file"), MissingFileError, "there is no such file"),
        (PermissionError(13, "Permission denied"), StorageError, "Permission denied; nothing"),
        (OSError(errno.ENOSPC, "No space left"), StorageError, "the disk is full; nothing"),
        (TimeoutError(errno.ETIMEDOUT, "Timed out"), StorageError, "Timed out; nothing"),
        (OSError(), StorageError, "OSError; nothing"),
        (StorageError(None, "kept as it is"), StorageError, "^kept as it is$"),
        (RuntimeError("not of the disk"), RuntimeError, "^not of the disk$"),
    ],
)
def test_errors_of_the_system_become_sentences(
    error: Exception, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught, storage.accessing("read", "/run/file"):
        raise error
    assert type(caught.value) is kind
    if caught.value is not error:
        assert str(caught.value).startswith("cannot read /run/file: ")


def test_unknown_protocol_names_what_is_expected() -> None:
    with pytest.raises(ConfigError, match="gs://bucket"):
        storage.read_bytes("s3://bucket/key")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
def test_full_disk_is_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]) != 0:
        pytest.skip("this machine does not allow mounting a tmpfs")
    try:
        assert storage.publish_bytes(b"kept", str(disk / "kept"))
        with pytest.raises(StorageError, match="the disk is full"):
            storage.publish_bytes(bytes(2**20), str(disk / "large"))
        assert os.listdir(disk) == ["kept"]
    finally:
        subprocess.check_call(["umount", str(disk)])


def test_unavailable_server_is_retried_then_a_sentence(unavailable_gcs: Callable[[], int]) -> None:
    with pytest.raises(StorageError, match=r"503.*run the same command again"):
        storage.publish_bytes(b"x", "gs://bucket/x")
    assert unavailable_gcs() > 3
