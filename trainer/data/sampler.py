"""Which sample is at which position, and which rank takes it: pure functions of the seed.

A training visits positions 0, 1, 2, ..., so all that it has to remember of its data is one integer.
Step s takes the next `captions_per_batch` positions. Their samples are sorted by shard and cut into
one slice for each rank, so a rank needs few shards in a step, and from step to step about the same
part of a window; the slices one after the other are the same sequence for any number of ranks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transforms.core.seeding import derive

_REMEMBERED_WINDOWS = 4


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
        self.window_samples = min(window / len(shard_sizes), 1.0) * self.num_samples
        """In a window, on average."""
        self._sizes = shard_sizes
        self._starts = np.cumsum(shard_sizes) - shard_sizes
        self._seed = seed
        self._window = window
        self._epoch = -1
        self._shards: NDArray[np.int64] = np.empty(0, np.int64)
        self._window_ends: NDArray[np.int64] = np.empty(0, np.int64)
        self._samples: dict[tuple[int, int], NDArray[np.int64]] = {}

    def __call__(self, positions: range) -> NDArray[np.int64]:
        """int64 [positions], the number of the sample at each of consecutive positions."""
        parts = [np.empty(0, np.int64)]
        position = positions.start
        while position < positions.stop:
            epoch, place = divmod(position, self.num_samples)
            if epoch != self._epoch:
                self._start_epoch(epoch)
            window = int(np.searchsorted(self._window_ends, place, side="right"))
            start = place - (int(self._window_ends[window - 1]) if window else 0)
            part = self._in_window(window)[start : start + positions.stop - position]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts)

    def _start_epoch(self, epoch: int) -> None:
        generator = np.random.default_rng(derive(self._seed, "shard order", epoch))
        self._shards = generator.permutation(len(self._sizes))
        sizes = self._sizes[self._shards]
        starts = range(0, len(sizes), self._window)
        self._window_ends = np.cumsum(np.add.reduceat(sizes, np.asarray(starts)))
        self._epoch = epoch

    def _in_window(self, window: int) -> NDArray[np.int64]:
        """int64 [samples], those of a window of the epoch, in order."""
        key = (self._epoch, window)
        if key not in self._samples:
            shards = self._shards[window * self._window : (window + 1) * self._window]
            samples = np.concatenate(
                [np.arange(self._starts[s], self._starts[s] + self._sizes[s]) for s in shards]
            )
            generator = np.random.default_rng(derive(self._seed, "sample order", *key))
            generator.shuffle(samples)
            if len(self._samples) >= _REMEMBERED_WINDOWS:
                del self._samples[next(iter(self._samples))]
            self._samples[key] = samples
        return self._samples[key]


@dataclass(frozen=True)
class Share:
    """What a rank takes of a step, sorted by shard and place in the shard."""

    positions: NDArray[np.int64]
    """int64 [N]."""
    numbers: NDArray[np.int64]
    """int64 [N], of the sample at each position."""


@dataclass(frozen=True)
class Shares:
    """The share of one rank in each step.

    Args:
        order: Which sample each position has.
        captions_per_batch: Over all ranks, a multiple of their number.
        rank: Whose share.
        ranks: How many there are.
    """

    order: SampleOrder
    captions_per_batch: int
    rank: int = 0
    ranks: int = 1

    def __call__(self, step: int) -> Share:
        """The rank's share of a step."""
        first = step * self.captions_per_batch
        numbers = self.order(range(first, first + self.captions_per_batch))
        size = self.captions_per_batch // self.ranks
        # Numbers run through shard after shard. Stable: an epoch's end may repeat one.
        mine = np.argsort(numbers, kind="stable")[self.rank * size : (self.rank + 1) * size]
        return Share(first + mine, numbers[mine])
