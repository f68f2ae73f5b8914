"""Samplers: which sample each position of the training has, and which samples a rank takes.

Both are pure functions of the seed. A training visits positions 0, 1, 2, ..., so the state of its
data stream is one integer. Step s takes the next `captions_per_batch` positions. Their samples are
sorted by shard and cut into one slice per rank, so a rank needs few shards in a step, and about the
same part of a window from step to step. The concatenated slices are the same sequence for any
number of ranks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transforms.core.seeding import derive

MAX_CACHED_WINDOWS = 4


class ShuffleSampler:
    """The sample at each position.

    In every epoch the shards are permuted, then the samples within each window of shards, so that
    few shards are needed at a time. Every epoch visits every sample once.

    Args:
        shard_sizes: int64 [number of shards], number of samples in each shard.
        seed: Seed of the training.
        window: Number of shards in a window.
    """

    def __init__(self, shard_sizes: NDArray[np.int64], seed: int, window: int) -> None:
        self.num_samples = int(shard_sizes.sum())
        self.window_samples = min(window / len(shard_sizes), 1.0) * self.num_samples
        """Mean number of samples in a window."""
        self._sizes = shard_sizes
        self._starts = np.cumsum(shard_sizes) - shard_sizes
        self._seed = seed
        self._window = window
        self._epoch = -1
        self._shards: NDArray[np.int64] = np.empty(0, np.int64)
        self._window_ends: NDArray[np.int64] = np.empty(0, np.int64)
        self._windows: dict[tuple[int, int], NDArray[np.int64]] = {}

    def __call__(self, positions: range) -> NDArray[np.int64]:
        """Return the samples at consecutive positions, int64 [len(positions)]."""
        parts = [np.empty(0, np.int64)]
        position = positions.start
        while position < positions.stop:
            epoch, offset = divmod(position, self.num_samples)
            if epoch != self._epoch:
                self._start_epoch(epoch)
            window = int(np.searchsorted(self._window_ends, offset, side="right"))
            start = offset - (int(self._window_ends[window - 1]) if window else 0)
            part = self._window_order(window)[start : start + positions.stop - position]
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

    def _window_order(self, window: int) -> NDArray[np.int64]:
        """Return the shuffled samples of a window of the current epoch, int64 [samples]."""
        key = (self._epoch, window)
        if key not in self._windows:
            shards = self._shards[window * self._window : (window + 1) * self._window]
            samples = np.concatenate(
                [np.arange(self._starts[s], self._starts[s] + self._sizes[s]) for s in shards]
            )
            generator = np.random.default_rng(derive(self._seed, "sample order", *key))
            generator.shuffle(samples)
            if len(self._windows) >= MAX_CACHED_WINDOWS:
                del self._windows[next(iter(self._windows))]
            self._windows[key] = samples
        return self._windows[key]


def first_captions(shard_sizes: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """Return the sizes of the shards that hold the first captions; the last one may be cut.

    Args:
        shard_sizes: int64 [number of shards], number of samples in each shard.
        number: Captions to take, from 1 to the sum of the sizes.
    """
    before = np.cumsum(shard_sizes) - shard_sizes
    taken = np.minimum(shard_sizes, number - before)
    return taken[taken > 0]


@dataclass(frozen=True)
class BatchIndices:
    """The positions and samples of one rank in one step, sorted by sample."""

    positions: NDArray[np.int64]
    """int64 [N]."""
    samples: NDArray[np.int64]
    """int64 [N], the number of the sample at each position."""


@dataclass(frozen=True)
class RankSampler:
    """The samples of one rank in each step.

    Args:
        sampler: The sample at each position.
        captions_per_batch: Samples per step over all ranks, a multiple of their number.
        rank: Number of the rank.
        ranks: Number of ranks.
    """

    sampler: ShuffleSampler
    captions_per_batch: int
    rank: int = 0
    ranks: int = 1

    def __call__(self, step: int) -> BatchIndices:
        """Return what the rank takes of a step."""
        first = step * self.captions_per_batch
        samples = self.sampler(range(first, first + self.captions_per_batch))
        size = self.captions_per_batch // self.ranks
        # Samples are numbered shard by shard. A stable sort, since a batch that spans two epochs
        # may hold a sample twice.
        order = np.argsort(samples, kind="stable")[self.rank * size : (self.rank + 1) * size]
        return BatchIndices(first + order, samples[order])
