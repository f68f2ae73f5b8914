"""Samplers: every sample once per epoch, few shards at a time, the same for any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sampler import RankSampler, ShuffleSampler, first_captions


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=9),
    window=st.integers(1, 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_visits_every_sample_once_within_windows_of_shards(
    sizes: list[int], window: int, seed: int
) -> None:
    sampler = ShuffleSampler(np.array(sizes), seed, window)
    total = sum(sizes)
    assert 0 < sampler.window_samples <= total
    epochs = [sampler(range(epoch * total, (epoch + 1) * total)).tolist() for epoch in range(3)]
    ends = np.cumsum(sizes)
    for samples in epochs:
        assert sorted(samples) == list(range(total))
        shards = np.searchsorted(ends, samples, side="right")
        # From the first to the last visit of a shard, at most one window of shards is visited.
        for shard in range(len(sizes)):
            places = np.flatnonzero(shards == shard)
            assert len(set(shards[places[0] : places[-1] + 1])) <= window
    together = [sample for samples in epochs for sample in samples]
    for first, last in ((0, 1), (total // 2, 2 * total + 1), (total - 1, total + 1)):
        assert sampler(range(first, last)).tolist() == together[first:last], (
            "asked for in any order"
        )


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=9), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_first_captions_are_those_of_the_first_shards(
    sizes: list[int], data: st.DataObject
) -> None:
    number = data.draw(st.integers(1, sum(sizes)))
    taken = first_captions(np.array(sizes), number)
    assert taken.min() > 0 and taken.sum() == number
    assert taken[:-1].tolist() == sizes[: len(taken) - 1] and taken[-1] <= sizes[len(taken) - 1]
    samples = ShuffleSampler(taken, 0, 2)(range(2 * number))
    assert sorted(samples) == sorted([*range(number), *range(number)]), "each once per epoch"


@pytest.mark.parametrize("sizes", [[60], [1] * 60], ids=["inside a shard", "of shards"])
def test_epochs_and_seeds_differ_in_order(sizes: list[int]) -> None:
    orders = [
        ShuffleSampler(np.array(sizes), seed, 1)(range(start, start + 60)).tolist()
        for seed, start in ((0, 0), (0, 60), (1, 0))
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=9),
    ranks=st.sampled_from([1, 2, 3, 4]),
    step=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_ranks_share_a_step_in_the_same_sequence_for_any_number(
    sizes: list[int], ranks: int, step: int
) -> None:
    sampler = ShuffleSampler(np.array(sizes), 0, 2)
    slices = [RankSampler(sampler, 12, rank, ranks)(step) for rank in range(ranks)]
    assert {len(indices.positions) for indices in slices} == {12 // ranks}
    positions = np.concatenate([indices.positions for indices in slices])
    samples = np.concatenate([indices.samples for indices in slices])
    assert sorted(positions) == list(range(12 * step, 12 * (step + 1)))
    assert [sampler(range(p, p + 1))[0] for p in positions.tolist()] == samples.tolist()
    assert positions.tolist() == RankSampler(sampler, 12)(step).positions.tolist()


def test_a_rank_needs_few_shards_and_its_own_part_of_a_window() -> None:
    """As in the paper: 8,192 captions from windows of 100 shards of 250, for 32 ranks."""
    sampler = ShuffleSampler(np.full(400, 250), 0, 100)
    found = [
        [RankSampler(sampler, 8192, rank, 32)(step).samples // 250 for step in (0, 1)]
        for rank in range(32)
    ]
    assert max(len(set(shards)) for steps in found for shards in steps) <= 8
    machines = [
        {shard for steps in found[r : r + 8] for s in steps for shard in s.tolist()}
        for r in range(0, 32, 8)
    ]
    assert sum(map(len, machines)) < 1.2 * len(set.union(*machines))
