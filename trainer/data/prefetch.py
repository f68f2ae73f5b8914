"""Downloads of remote shards before the workers of this rank need them.

Workers are up to `num_workers` x `batches_per_worker` steps ahead of the training. The prefetcher
downloads the shards of the steps after those, in order and for one window of shards, as long as all
shards that are needed until then fit into the cache.
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
"""Simultaneous downloads per rank."""


class Prefetcher:
    """Downloads the shards of a rank's next steps into the cache.

    Args:
        reader: Reader of the shards.
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
        self._steps_ahead = self._workers_ahead + window
        self._at_start = max(1, num_workers)
        """How far workers are ahead at the start: each is at its first step."""
        self._next = steps.start
        """First step whose shards are not in `_needed` yet."""
        self._needed: dict[int, int] = {}
        """Shard -> last step before `_next` that needs it."""
        self._warned = False
        self._downloads = ThreadPoolExecutor(NUM_DOWNLOADS, thread_name_prefix="prefetch")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel downloads that have not started."""
        self._downloads.shutdown(wait=True, cancel_futures=True)

    def advance_to(self, step: int) -> None:
        """Start the downloads that are due when `step` is the next step; does not wait for them."""
        if not self._reader.is_remote:
            return
        self._needed = {shard: last for shard, last in self._needed.items() if last >= step}
        requested = step + (self._at_start if step == self._steps.start else self._workers_ahead)
        end = min(step + self._steps_ahead, self._steps.stop)
        for later in range(max(step, self._next), end):
            shards = self._shards(later)
            if self._exceeds_cache({*shards, *self._needed}):
                self._warn(step, end)
                break
            if later >= requested:  # Workers download the shards of earlier steps.
                for shard in sorted(shards - self._needed.keys()):
                    self._downloads.submit(self._fetch, shard)
            self._needed.update(dict.fromkeys(shards, later))
            self._next = later + 1

    def _shards(self, step: int) -> set[int]:
        return self._reader.shards_of(self._rank_sampler(step).samples)

    def _bytes(self, shards: set[int]) -> int:
        """Estimate the size of the shards of all ranks on this machine from this rank's shards."""
        return int(self._reader.shard_bytes[list(shards)].sum()) * self._ranks_here

    def _exceeds_cache(self, shards: set[int]) -> bool:
        return self._bytes(shards) > self._reader.cache_bytes

    def _warn(self, step: int, end: int) -> None:
        if self._warned:
            return
        self._warned = True
        wanted: set[int] = set().union(*map(self._shards, range(step, end)))
        log.warning(
            "the shards of the next %d steps do not fit into a cache of %.3g GiB, so fewer are "
            "downloaded in advance; set loader.cache_gib to %.3g or more",
            end - step,
            self._reader.cache_bytes / (1 << 30),
            math.ceil(1000 * self._bytes(wanted) / (1 << 30)) / 1000,
        )

    def _fetch(self, shard: int) -> None:
        try:
            self._reader.fetch(shard)
        except (StorageError, DamagedFileError) as error:  # The reader will raise it again.
            log.info("shard %d was not downloaded in advance: %s", shard, error)
