"""Advice on how many captions to write: compared with draws from a source of known size."""

import math
import random

import pytest

from transforms.curation.dedup import Summary
from transforms.curation.reserve import all_can_come, most_captions, raw_needed


def drawn(number: int, different: int, seed: int = 0) -> tuple[Summary, int]:
    """Draw captions with equal probability; return what deduplication finds, and how many."""
    draw = random.Random(seed).randrange
    first: dict[int, int] = {}
    for ordinal in range(number):
        first.setdefault(draw(different), ordinal)
    late = sum(ordinal >= 0.8 * number for ordinal in first.values())
    return Summary([len(first)], [0], [], [], [late]), len(first)


@pytest.mark.parametrize("number", [5_000, 10_000, 40_000])
def test_the_number_of_different_captions_is_guessed(number: int) -> None:
    summary, kept = drawn(number, 10_000)
    most = most_captions(number, summary)
    assert 0.95 * 10_000 < most < 1.35 * 10_000
    assert most >= kept


@pytest.mark.parametrize("wanted", [5_000, 9_000, 9_900])
def test_the_advice_gives_enough_captions(wanted: int) -> None:
    _, kept = drawn(4_000, 10_000)
    needed = raw_needed(wanted, 4_000, kept, 10_000)
    _, then = drawn(round(1.05 * needed), 10_000)
    assert wanted <= then
    assert drawn(round(0.9 * needed), 10_000)[1] < wanted, "and not many more than needed"


def test_a_source_without_an_end_needs_as_many_more_as_are_missing() -> None:
    summary = Summary([95], [0], [], [], [])
    assert math.isinf(most_captions(100, summary)), "files of an earlier version"
    assert raw_needed(190, 100, 95, math.inf) == 200


def test_near_duplicates_exhaust_a_source_of_different_texts() -> None:
    assert most_captions(1000, Summary([1000], [990], [], [], [200])) < 11


def test_captions_that_never_come_are_noticed() -> None:
    full, kept = drawn(20_000, 1_000)
    assert kept == 1_000
    assert all_can_come(20_000, full, 1_000)
    assert not all_can_come(20_000, full, 1_100), "a tenth is dropped by filters"
    assert all_can_come(4, Summary([2], [0], [], [], [0]), 4), "too few to tell"
