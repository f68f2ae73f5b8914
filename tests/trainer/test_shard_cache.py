"""The cache of remote shards: what is evicted, and what a killed process left."""

import os
import time
from pathlib import Path

from trainer.shard_cache import ABANDONED_S, ShardCache
from transforms.core import storage


def test_abandoned_downloads_go_and_those_under_way_stay(tmp_path: Path) -> None:
    abandoned, under_way = (tmp_path / f".{name}.tar.0123.part" for name in "ab")
    for part in (abandoned, under_way):
        part.write_bytes(b"half of a shard")
    old = time.time() - ABANDONED_S - 60
    os.utime(abandoned, (old, old))
    storage.publish_bytes(b"a shard", "memory://shard-cache/one.tar")
    cache = ShardCache(str(tmp_path), max_bytes=1)
    os.close(cache.open("memory://shard-cache/one.tar", "1" * 64))
    assert not abandoned.exists()
    assert under_way.exists()
    assert (tmp_path / f"{'1' * 64}.tar").read_bytes() == b"a shard"
