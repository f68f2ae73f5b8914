import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.sentences import altered, sentences, slow_jaccard, slow_shingles
from transforms.curation.columns import Hashes, mix
from transforms.curation.minhash import (
    MAX_PARTNERS,
    CurationConfig,
    band_hashes,
    candidate_pairs,
    candidate_probability,
    shingles,
    similarity,
)

captions = st.lists(
    st.lists(st.sampled_from(["a", "red", "fox", "Fox,", "it's", "naïve", "狐", "--", "😀"])).map(
        " ".join
    ),
    min_size=1,
    max_size=8,
)


def bands(texts: list[str], config: CurationConfig) -> Hashes:
    return band_hashes(pa.array(texts), config)


@settings(deadline=None)
@given(captions, captions, st.integers(1, 4))
def test_similarity_is_the_jaccard_index_of_word_shingles(
    ones: list[str], others: list[str], size: int
) -> None:
    pairs = list(itertools.product(ones, others))
    sides = [shingles(pa.array(side), size) for side in zip(*pairs, strict=True)]
    expected = [slow_jaccard(one, other, size) for one, other in pairs]
    assert similarity(*sides).tolist() == pytest.approx(expected)


@settings(deadline=None)
@given(captions, st.integers(1, 4))
def test_every_caption_has_its_shingles(texts: list[str], size: int) -> None:
    found = shingles(pa.array(texts), size)
    for i, text in enumerate(texts):
        own = found.hashes[found.starts[i] : found.starts[i + 1]]
        assert len(own) >= 1
        assert len(set(own.tolist())) == len(slow_shingles(text, size))


def test_what_has_no_word_resembles_only_itself() -> None:
    texts = pa.array(["😀", "😀", "🎈", ""])
    alike = similarity(shingles(texts, 2), shingles(texts[::-1], 2))
    assert similarity(shingles(texts, 2), shingles(texts, 2)).tolist() == [1, 1, 1, 1]
    assert alike.tolist() == [0, 0, 0, 0]


def test_candidates_are_found_as_often_as_banding_promises() -> None:
    # Each pair is a trial; 1,000 of them are within four standard deviations of the formula.
    config = CurationConfig(num_permutations=40, num_bands=8)
    draw = random.Random(0)
    for changed in (1, 2, 4):
        texts = sentences(1000, draw)
        others = [altered(text, changed, draw) for text in texts]
        agree = (bands(texts, config) == bands(others, config)).any(axis=1)
        chances = [
            candidate_probability(slow_jaccard(one, other, config.shingle_words), config)
            for one, other in zip(texts, others, strict=True)
        ]
        deviation = sum(p * (1 - p) for p in chances) ** 0.5
        assert abs(agree.sum() - sum(chances)) < 4 * deviation + 1


def test_the_defaults_find_nearly_every_pair_at_the_threshold() -> None:
    config = CurationConfig()
    assert config.near_duplicate_threshold is not None
    assert candidate_probability(config.near_duplicate_threshold, config) > 0.99
    assert candidate_probability(0.2, config) < 0.01


def test_bands_depend_on_nothing_but_the_text() -> None:
    draw = random.Random(0)
    texts = sentences(50, draw)
    whole = bands(texts, CurationConfig())
    order = draw.sample(range(50), 50)
    assert (bands([texts[i] for i in order], CurationConfig()) == whole[order]).all()
    assert len(np.unique(whole)) == whole.size, "no two bands share a number"


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), max_size=40))
def test_small_buckets_give_every_pair_and_large_ones_few(values: list[int]) -> None:
    keys = mix(np.arange(len(values), dtype=np.uint64))
    earlier, later = candidate_pairs(np.array(values, np.uint64), keys)
    found = set(zip(earlier.tolist(), later.tolist(), strict=True))
    assert len(found) == len(earlier), "each pair once"
    for value in set(values):
        bucket = sorted(k for k, v in zip(keys.tolist(), values, strict=True) if v == value)
        ours = {pair for pair in found if pair[0] in bucket}
        every = set(itertools.combinations(bucket, 2))
        assert ours == {pair for pair in every if pair[0] in bucket[:MAX_PARTNERS]}


def test_a_huge_bucket_does_not_explode() -> None:
    keys = mix(np.arange(100_000, dtype=np.uint64))
    earlier, _ = candidate_pairs(np.zeros(len(keys), np.uint64), keys)
    assert len(earlier) < MAX_PARTNERS * len(keys)


def test_unequal_bands_are_refused() -> None:
    with pytest.raises(ValidationError, match="'num_bands' has value 15: expected a divisor"):
        CurationConfig(num_bands=15)
