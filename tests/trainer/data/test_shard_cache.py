"""The cache of remote shards: eviction, and the partial files of killed processes."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from trainer.data.shard_cache import ABANDONED_S, ShardCache
from transforms.core import storage


def test_abandoned_downloads_go_and_those_under_way_stay(tmp_path: Path) -> None:
    abandoned, under_way = (tmp_path / f".{name}.tar.0123.part" for name in "ab")
    for part in (abandoned, under_way):
        part.write_bytes(b"half of a shard")
    old = time.time() - ABANDONED_S - 60
    os.utime(abandoned, (old, old))
    storage.publish_bytes(b"a shard", "memory://shard-cache/one.tar")
    checksum = sha256(b"a shard").hexdigest()
    cache = ShardCache(str(tmp_path), max_bytes=1)
    os.close(cache.open("memory://shard-cache/one.tar", checksum))
    assert not abandoned.exists()
    assert under_way.exists()
    assert (tmp_path / f"{checksum}.tar").read_bytes() == b"a shard"


def test_the_copy_that_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = ShardCache(str(tmp_path), max_bytes=3)

    def use(name: str, age_s: float) -> None:
        url = f"memory://eviction/{name}.tar"
        storage.publish_bytes(name.encode(), url)
        checksum = sha256(name.encode()).hexdigest()
        os.close(cache.open(url, checksum))
        used = time.time() - age_s
        os.utime(tmp_path / f"{checksum}.tar", (used, used))

    for name, age_s in (("a", 40), ("b", 30), ("c", 20), ("a", 10), ("d", 0)):
        use(name, age_s)
    assert {copy.read_bytes() for copy in tmp_path.glob("*.tar")} == {b"a", b"c", b"d"}


def test_using_a_copy_makes_it_recent(tmp_path: Path) -> None:
    storage.publish_bytes(b"used", "memory://eviction/used.tar")
    checksum = sha256(b"used").hexdigest()
    cache = ShardCache(str(tmp_path), max_bytes=9)
    os.close(cache.open("memory://eviction/used.tar", checksum))
    copy = tmp_path / f"{checksum}.tar"
    os.utime(copy, (1, 1))
    os.close(cache.open("memory://eviction/used.tar", checksum))
    assert copy.stat().st_mtime > time.time() - 60


def test_who_wants_a_shard_that_another_fetches_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish_bytes(b"wanted", "memory://eviction/wanted.tar")
    download, fetched, asked = storage.download, list[str](), threading.Barrier(3)

    def slow(url: str, path: str) -> None:
        fetched.append(url)
        time.sleep(0.3)
        download(url, path)

    def fetch(_: int) -> bytes:
        asked.wait(30)
        cache = ShardCache(str(tmp_path), max_bytes=9)  # As each process has one.
        descriptor = cache.open("memory://eviction/wanted.tar", sha256(b"wanted").hexdigest())
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    monkeypatch.setattr(storage, "download", slow)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(fetch, range(3))) == [b"wanted"] * 3
    assert len(fetched) == 1


def test_a_download_that_was_damaged_on_the_way_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish_bytes(b"content", "memory://eviction/flaky.tar")
    download = storage.download
    fetched: list[str] = []

    def flip(url: str, path: str) -> None:
        download(url, path)
        fetched.append(url)
        if len(fetched) == 1:
            Path(path).write_bytes(b"cOntent")

    monkeypatch.setattr(storage, "download", flip)
    cache = ShardCache(str(tmp_path), max_bytes=9)
    descriptor = cache.open("memory://eviction/flaky.tar", sha256(b"content").hexdigest())
    assert os.read(descriptor, 9) == b"content"
    os.close(descriptor)
    assert len(fetched) == 2
