"""Remote shards on their way before they are needed: while a window of shards is read, the next.

Samples are shuffled inside windows of shards (see `trainer.order`), so a window's shards are all
wanted at its start. Within the cache's bound: where two windows do not fit, nothing is fetched
ahead, since it would only push out what is being read.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

from trainer.data import ShardReader
from trainer.order import SampleOrder
from transforms.core import storage

log = logging.getLogger(__name__)

NUM_DOWNLOADS = 4
"""At a time in each rank; those of one machine share the cache, and no two fetch the same shard."""


class Prefetcher:
    """Fetches the window after the one that is read.

    Args:
        reader: Of the shards.
        order: In which they are read.
    """

    def __init__(self, reader: ShardReader, order: SampleOrder) -> None:
        self._reader = reader
        self._order = order
        self._window_end = -1
        self._downloads = ThreadPoolExecutor(NUM_DOWNLOADS, thread_name_prefix="prefetch")

    def reach(self, position: int) -> None:
        """Say that the training is at a position; returns at once."""
        if not self._reader.is_remote or position < self._window_end:
            return
        now, self._window_end = self._order.window(position)
        coming, _ = self._order.window(self._window_end)
        needed = int(self._reader.shard_bytes[list({*now, *coming})].sum())
        if needed > self._reader.cache_bytes:
            log.warning(
                "two windows of shards are %d bytes and the cache is bounded to %d: shards are not "
                "fetched ahead; raise loader.cache_gib or lower loader.shuffle_shards",
                needed,
                self._reader.cache_bytes,
            )
            return
        for shard in coming:
            self._downloads.submit(self._fetch, shard)

    def close(self) -> None:
        """Fetch no more."""
        self._downloads.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, shard: int) -> None:
        try:
            self._reader.fetch(shard)
        except storage.StorageError as error:  # Whoever needs the shard will say so.
            log.info("shard %d was not fetched ahead: %s", shard, error)
