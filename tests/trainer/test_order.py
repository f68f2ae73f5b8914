"""Which sample is where: every epoch has all of them once, and only a few shards at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.order import SampleOrder


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=9),
    window=st.integers(1, 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_visits_every_sample_once_within_windows_of_shards(
    sizes: list[int], window: int, seed: int
) -> None:
    order = SampleOrder(np.array(sizes), seed, window)
    total = sum(sizes)
    epochs = [[order(epoch * total + place) for place in range(total)] for epoch in range(3)]
    ends = np.cumsum(sizes)
    for epoch, visits in enumerate(epochs):
        assert {number for number, _ in visits} == {epoch}
        samples = [sample for _, sample in visits]
        assert sorted(samples) == list(range(total))
        shards = np.searchsorted(ends, samples, side="right")
        # From the first to the last visit of a shard no more than one window's shards are seen.
        for shard in range(len(sizes)):
            places = np.flatnonzero(shards == shard)
            assert len(set(shards[places[0] : places[-1] + 1])) <= window
    assert order(0) == epochs[0][0], "positions can be asked for in any order"


def test_epochs_and_seeds_differ_in_order() -> None:
    sizes = np.array([20, 20, 20])
    orders = [
        [SampleOrder(sizes, seed, 2)(position)[1] for position in range(start, start + 60)]
        for seed, start in ((0, 0), (0, 60), (1, 0))
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=9), window=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_window_says_which_shards_are_read_and_until_when(sizes: list[int], window: int) -> None:
    order = SampleOrder(np.array(sizes), 0, window)
    ends = np.cumsum(sizes)
    position = 0
    while position < 2 * sum(sizes):
        shards, end = order.window(position)
        samples = [order(place)[1] for place in range(position, end)]
        assert set(np.searchsorted(ends, samples, side="right")) == set(shards)
        assert len(shards) <= window
        assert order.window(end - 1) == (shards, end)
        position = end
