import ctypes
import errno
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.publishers import publish_at_once
from transforms.core import storage
from transforms.core.errors import StorageError
from transforms.core.storage import local


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that put a file or its name on the disk, in order, each with what it is for."""
    done: list[str] = []
    synced, link, replace = os.fsync, os.link, os.replace

    def watched_sync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "file"
        done.append(f"sync {kind}")
        synced(descriptor)

    def watched_link(source: str, target: str) -> None:
        link(source, target)
        done.append("link")

    def watched_replace(source: str, target: str) -> None:
        replace(source, target)
        done.append("replace")

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "link", watched_link)
    monkeypatch.setattr(os, "replace", watched_replace)
    return done


def refuse_links(
    monkeypatch: pytest.MonkeyPatch, error: int, refuses: Callable[[str], bool]
) -> None:
    """Let hard links from those sources fail."""
    link = os.link

    def refusing(source: str, target: str) -> None:
        if refuses(source):
            raise OSError(error, os.strerror(error), source, None, target)
        link(source, target)

    monkeypatch.setattr(os, "link", refusing)


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "scratch" / "source"
    path.parent.mkdir()
    path.write_bytes(b"content")
    return str(path)


def test_a_file_from_another_disk_is_synced_before_it_gets_its_name(
    source: str, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch, errno.EXDEV, lambda path: path == source)
    url = str(tmp_path / "run" / "published")
    assert storage.publish_file(source, url)
    assert calls == ["sync file", "sync file", "link", "sync folder"]
    assert not storage.publish_file(source, url)
    assert os.listdir(tmp_path / "run") == ["published"]
    assert Path(source).exists()


def test_a_download_is_synced_before_it_gets_its_name(
    source: str, tmp_path: Path, calls: list[str]
) -> None:
    storage.download(source, str(tmp_path / "copy"))
    assert calls == ["sync file", "replace"]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "renameat2"), reason="a call of Linux")
@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_without_hard_links_a_name_is_still_taken_once(
    source: str, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    refuse_links(monkeypatch, error, lambda path: True)
    run = tmp_path / "run"
    assert storage.publish_file(source, str(run / "file"))
    assert calls == ["sync file", "sync file", "sync folder"]
    assert storage.publish_bytes(b"first", str(run / "bytes"))
    assert not storage.publish_file(source, str(run / "file"))
    assert not storage.publish_bytes(b"second", str(run / "bytes"))
    assert (run / "file").read_bytes() == b"content"
    assert (run / "bytes").read_bytes() == b"first"
    assert sorted(os.listdir(run)) == ["bytes", "file"]
    assert Path(source).exists(), "the caller's file stays"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "renameat2"), reason="a call of Linux")
def test_without_hard_links_one_of_many_threads_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch, errno.EPERM, lambda path: True)
    url = str(tmp_path / "contested")
    won = publish_at_once(url)
    assert len(won) == 1
    assert storage.read_bytes(url) == str(won[0]).encode()


@pytest.mark.parametrize("has_call", [True, False])
def test_a_disk_on_which_no_name_can_be_taken_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_call: bool
) -> None:
    refuse_links(monkeypatch, errno.EPERM, lambda path: True)

    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1

    library = SimpleNamespace(renameat2=refuse) if has_call else SimpleNamespace()
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: library)
    with pytest.raises(StorageError, match=r"neither hard links nor .*choose a `run` on another"):
        storage.publish_bytes(b"content", str(tmp_path / "run" / "name"))
    assert os.listdir(tmp_path / "run") == []


def test_a_disk_that_cannot_sync_folders_is_named_once(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    synced = os.fsync

    def sync_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", sync_files)
    local._warn_of_folders.cache_clear()
    with caplog.at_level(logging.WARNING):
        for name in ("one", "folder/two"):
            assert storage.publish_file(source, str(tmp_path / name))
            storage.replace_bytes(b"new", str(tmp_path / name))
    (said,) = caplog.messages
    mount = said.partition("the file system of ")[2].partition(" cannot sync folders")[0]
    assert os.path.ismount(mount)
    assert str(tmp_path).startswith(mount)


def test_a_folder_whose_disk_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        storage.publish_bytes(b"content", str(tmp_path / "name"))
