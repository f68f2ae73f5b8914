"""Which sample is at which position: a pure function of the seed.

A training visits positions 0, 1, 2, ..., so all that it has to remember of its data is one integer.
"""

import numpy as np
from numpy.typing import NDArray

from transforms.core.seeding import derive


class SampleOrder:
    """Which sample each position has.

    In every epoch the shards are permuted, then the samples inside each window of shards, so that
    few shards are needed at a time. Every epoch visits every sample once.

    Args:
        shard_sizes: int64 [number of shards], samples in each.
        seed: Of the training.
        window: Shards in a window.
    """

    def __init__(self, shard_sizes: NDArray[np.int64], seed: int, window: int) -> None:
        self.num_samples = int(shard_sizes.sum())
        self._sizes = shard_sizes
        self._starts = np.cumsum(shard_sizes) - shard_sizes
        self._seed = seed
        self._window = window
        self._epoch = -1
        self._shards: NDArray[np.int64] = np.empty(0, np.int64)
        self._window_ends: NDArray[np.int64] = np.empty(0, np.int64)
        self._samples: dict[tuple[int, int], NDArray[np.int64]] = {}

    def __call__(self, position: int) -> tuple[int, int]:
        """(epoch, number of the sample) at a position."""
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._start_epoch(epoch)
        window = int(np.searchsorted(self._window_ends, place, side="right"))
        start = int(self._window_ends[window - 1]) if window else 0
        return epoch, int(self._window_samples(window)[place - start])

    def window(self, position: int) -> tuple[list[int], int]:
        """The shards of the window that holds a position, and the first position after it."""
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._start_epoch(epoch)
        window = int(np.searchsorted(self._window_ends, place, side="right"))
        shards = self._shards[window * self._window : (window + 1) * self._window]
        return shards.tolist(), epoch * self.num_samples + int(self._window_ends[window])

    def _start_epoch(self, epoch: int) -> None:
        generator = np.random.default_rng(derive(self._seed, "shard order", epoch))
        self._shards = generator.permutation(len(self._sizes))
        sizes = self._sizes[self._shards]
        starts = range(0, len(sizes), self._window)
        self._window_ends = np.cumsum(np.add.reduceat(sizes, np.asarray(starts)))
        self._epoch = epoch

    def _window_samples(self, window: int) -> NDArray[np.int64]:
        key = (self._epoch, window)
        if key not in self._samples:
            shards = self._shards[window * self._window : (window + 1) * self._window]
            samples = np.concatenate(
                [np.arange(self._starts[s], self._starts[s] + self._sizes[s]) for s in shards]
            )
            generator = np.random.default_rng(derive(self._seed, "sample order", *key))
            generator.shuffle(samples)
            if len(self._samples) >= 2:
                del self._samples[next(iter(self._samples))]
            self._samples[key] = samples
        return self._samples[key]
