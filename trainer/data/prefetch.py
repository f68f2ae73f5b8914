"""Remote shards on their way before the workers of this rank ask for them.

Workers are `num_workers` x `prefetch` steps ahead of the training. From there on the shards of a
window's steps are fetched, in the order of the steps, as far as the rank's part of the cache holds
all that is needed until then.
"""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from trainer.data.sampler import RankSampler
from trainer.data.shard_reader import ShardReader
from transforms.core.errors import DamagedFileError, StorageError

log = logging.getLogger(__name__)

NUM_DOWNLOADS = 4
"""At a time in each rank."""


class Prefetcher:
    """Fetches what a rank's coming steps need.

    Args:
        reader: Of the shards.
        rank_sampler: The samples of the rank in each step.
        steps: Steps of the training.
        num_workers: Worker processes of the rank; 0 without any.
        batches_per_worker: Batches that each worker prepares ahead.
        ranks_here: Number of ranks that share the cache.
    """

    def __init__(
        self,
        reader: ShardReader,
        rank_sampler: RankSampler,
        steps: range,
        *,
        num_workers: int,
        batches_per_worker: int = 1,
        ranks_here: int = 1,
    ) -> None:
        self._reader = reader
        self._rank_sampler = rank_sampler
        self._ranks_here = ranks_here
        self._steps = steps
        self._workers_ahead = max(1, num_workers * batches_per_worker)
        window = math.ceil(rank_sampler.sampler.window_samples / rank_sampler.captions_per_batch)
        self._ahead = self._workers_ahead + window
        self._at_start = max(1, num_workers)
        """How far workers are at the start: each at its first step."""
        self._next = steps.start
        """First step whose shards are not yet among the needed."""
        self._needed: dict[int, int] = {}
        """Shard -> the last step up to `_next` that needs it."""
        self._warned = False
        self._downloads = ThreadPoolExecutor(NUM_DOWNLOADS, thread_name_prefix="prefetch")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Fetch no more."""
        self._downloads.shutdown(wait=True, cancel_futures=True)

    def reach(self, step: int) -> None:
        """Say that the training takes this step next; returns at once."""
        if not self._reader.is_remote:
            return
        self._needed = {shard: last for shard, last in self._needed.items() if last >= step}
        asked = step + (self._at_start if step == self._steps.start else self._workers_ahead)
        end = min(step + self._ahead, self._steps.stop)
        for coming in range(max(step, self._next), end):
            shards = self._shards(coming)
            if self._too_many({*shards, *self._needed}):
                self._warn(step, end)
                break
            if coming >= asked:  # Else a worker fetches them itself.
                for shard in sorted(shards - self._needed.keys()):
                    self._downloads.submit(self._fetch, shard)
            self._needed.update(dict.fromkeys(shards, coming))
            self._next = coming + 1

    def _shards(self, step: int) -> set[int]:
        return self._reader.shards_of(self._rank_sampler(step).samples)

    def _bytes(self, shards: set[int]) -> int:
        """What all ranks of this machine need where this one needs these shards."""
        return int(self._reader.shard_bytes[list(shards)].sum()) * self._ranks_here

    def _too_many(self, shards: set[int]) -> bool:
        return self._bytes(shards) > self._reader.cache_bytes

    def _warn(self, step: int, end: int) -> None:
        if self._warned:
            return
        self._warned = True
        wanted: set[int] = set().union(*map(self._shards, range(step, end)))
        log.warning(
            "the shards of the coming %d steps do not fit into a cache of %.3g GiB, so they are "
            "fetched less far ahead; set loader.cache_gib to %.3g or more",
            end - step,
            self._reader.cache_bytes / (1 << 30),
            math.ceil(1000 * self._bytes(wanted) / (1 << 30)) / 1000,
        )

    def _fetch(self, shard: int) -> None:
        try:
            self._reader.fetch(shard)
        except (StorageError, DamagedFileError) as error:  # Whoever needs it will say so.
            log.info("shard %d was not fetched ahead: %s", shard, error)
