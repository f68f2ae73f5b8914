"""MinHash over word shingles: near duplicates among captions, on whole columns in numpy.

Source: Broder, "On the resemblance and containment of documents" (1997), with signatures cut into
bands. A caption is the set of its word shingles (runs of a few words, in lower case, without
punctuation). Two captions are near duplicates if the Jaccard similarity of their sets reaches a
threshold.

    shingles         texts -> 64-bit hashes of their shingles
    band_hashes      shingles -> MinHash signatures, cut into bands; captions that agree in a whole
                     band are candidates: with r rows per band and b bands, the probability is
                     1 - (1 - s^r)^b at similarity s
    candidate_pairs  captions with equal bands -> pairs, linear in the size of a bucket
    similarity       pairs -> their exact Jaccard similarity, which decides

Signatures only select the pairs that are compared: no caption is dropped because of an estimate.
The results depend on the texts alone, not on how the corpus is partitioned.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from transforms.core.config import Config, added
from transforms.curation.columns import Hashes, Positions, changes, distinct, mix

MAX_PARTNERS = 8
"""Number of captions of a bucket that the others are compared with: those with the smallest keys.
Near duplicates usually resemble the first of them; comparing all pairs would be quadratic."""

_BLOCK = 20_000
"""Captions whose signatures are computed at a time; their shingles fit the processor's cache."""

_NO_WORD = r"[^\p{L}\p{N}\p{M}]+"
_WHOLE_WORD_LETTER = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}])"
"""Letters of scripts without spaces, each of which counts as a word."""


class CurationConfig(Config):
    """Settings of curation: detection and removal of duplicates, limit per concept."""

    duplicates: Literal["drop", "keep"] = added("drop")
    """`drop` keeps the first of equal captions, and no near duplicates. `keep` keeps all captions;
    equal ones get an id and images of their own (paper, Table 2)."""
    near_duplicate_threshold: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """Jaccard similarity of word shingles at which the later of two captions is dropped; null
    keeps near duplicates, as the paper does. It has no effect with duplicates=keep."""
    shingle_words: Annotated[int, Field(ge=1, le=8)] = 2
    """Words per shingle. With 2, captions of 19 words that differ in one inner word reach 0.8."""
    num_permutations: Annotated[int, Field(ge=1, le=1024)] = 80
    """Length of a MinHash signature."""
    num_bands: Annotated[int, Field(ge=1)] = 16
    """Bands per signature; more bands find pairs of lower similarity, and more pairs to compare."""

    captions_per_concept: PositiveInt | None = added(None)
    """Most captions that are kept of each concept; null keeps all. num_captions divided by the
    number of concepts gives all concepts equally many (paper, table 5: 10,000)."""

    @property
    def keeps_all(self) -> bool:
        """True if equal captions and near duplicates are kept."""
        return self.duplicates == "keep"

    @property
    def finds_near_duplicates(self) -> bool:
        """True if near duplicates are dropped."""
        return not self.keeps_all and self.near_duplicate_threshold is not None

    @model_validator(mode="after")
    def _equal_bands(self) -> "CurationConfig":
        if self.num_permutations % self.num_bands:
            raise ValueError(
                f"key 'num_bands' has value {self.num_bands}: expected a divisor of "
                f"num_permutations ({self.num_permutations}), so that bands are equal in size"
            )
        return self


@dataclass(frozen=True)
class Shingles:
    """Shingles of N captions, concatenated; each caption has at least one."""

    hashes: Hashes
    """[S] hashes of all captions; a shingle that a caption repeats is repeated here."""
    starts: Positions
    """[N + 1] positions: those of caption i are hashes[starts[i]:starts[i + 1]]."""


def candidate_probability(similarity: float, config: CurationConfig) -> float:
    """Return the probability that two captions of this Jaccard similarity agree in some band."""
    rows = config.num_permutations // config.num_bands
    return float(1 - (1 - similarity**rows) ** config.num_bands)


def shingles(texts: pa.Array, size: int) -> Shingles:
    """Return the word shingles of captions.

    Args:
        texts: [N] strings.
        size: Words per shingle; a caption with fewer words is one shingle.
    """
    words, counts = _words(texts)
    padded_counts = np.maximum(counts, size)
    ends = np.cumsum(padded_counts)
    # Word j of caption i is at the caption's start + j; a short caption is padded with zeros.
    padded_words: Hashes = np.zeros(ends[-1] if len(ends) else 0, np.uint64)
    padded_words[_ranges(ends - padded_counts, counts)] = words
    lengths = padded_counts - size + 1
    first = _ranges(ends - padded_counts, lengths)
    hashes = padded_words[first]
    for offset in range(1, size):
        hashes = mix(hashes * np.uint64(0x9E3779B97F4A7C15) + padded_words[first + offset])
    return Shingles(hashes, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def band_hashes(texts: pa.Array, config: CurationConfig) -> Hashes:
    """Return the hashes of the captions' bands.

    Args:
        texts: [N] strings.
        config: Size of shingles, number of permutations and bands.

    Returns:
        [N, bands] hashes: captions that agree in a band have the same number there. Apart from
        collisions, other bands have other numbers.
    """
    bands: Hashes = np.empty((len(texts), config.num_bands), np.uint64)
    for start in range(0, len(texts), _BLOCK):
        block = shingles(texts.slice(start, _BLOCK), config.shingle_words)
        bands[start : start + _BLOCK] = _bands(block, config)
    return bands


def candidate_pairs(bands: Hashes, keys: Hashes) -> tuple[Hashes, Hashes]:
    """Return pairs of captions that share a band.

    Args:
        bands: [M] band hashes.
        keys: [M] keys of the captions that the bands belong to.

    Returns:
        [K] and [K]: the smaller and the larger key of each pair, each pair once. Each caption of a
        bucket is paired with the first `MAX_PARTNERS` of it, so K is at most MAX_PARTNERS * M.
    """
    order = np.lexsort((keys, bands))
    bands, keys = bands[order], keys[order]
    new = changes(bands)
    starts = np.flatnonzero(new)[np.cumsum(new) - 1]
    rank = np.arange(len(bands)) - starts
    pairs = [
        (keys[starts[later] + partner], keys[later])
        for partner in range(MAX_PARTNERS)
        for later in [np.flatnonzero(rank > partner)]
    ]
    smaller, larger = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return distinct(smaller, larger)


def similarity(ones: Shingles, others: Shingles) -> NDArray[np.float64]:
    """Return the Jaccard similarity of caption i of `ones` and caption i of `others`: [N]."""
    number = len(ones.starts) - 1
    sets = [
        distinct(np.repeat(np.arange(number, dtype=np.uint64), np.diff(side.starts)), side.hashes)
        for side in (ones, others)
    ]
    owners, hashes = (np.concatenate(column) for column in zip(*sets, strict=True))
    union, _ = distinct(owners, hashes)
    summed, united = (
        np.bincount(column.astype(np.int64), minlength=number) for column in (owners, union)
    )
    # Common shingles are counted twice in the sum of the sizes, once in the union.
    return (summed - united) / united


def _words(texts: pa.Array) -> tuple[Hashes, Positions]:
    """Return the hashes of the words of all captions, and the number of words of each caption."""
    plain = pc.utf8_lower(texts)
    if not pc.all(pc.string_is_ascii(plain), min_count=0).as_py():
        plain = pc.replace_substring_regex(plain, _WHOLE_WORD_LETTER, r" \1 ")
    plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, _NO_WORD, " "))
    # A text without any word (emoji, for instance) counts as one word.
    plain = pc.if_else(pc.equal(plain, ""), pc.replace_substring(texts, " ", "_"), plain)
    lists = pc.split_pattern(plain, " ")
    words = pc.list_flatten(lists).dictionary_encode()
    hashes = np.array([_word_hash(word) for word in words.dictionary.to_pylist()], np.uint64)
    counts = pc.list_value_length(lists).to_numpy().astype(np.int64)
    return hashes[words.indices.to_numpy()], counts


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "big")


def _bands(block: Shingles, config: CurationConfig) -> Hashes:
    rows = config.num_permutations // config.num_bands
    # Multiplying by an odd factor and adding, modulo 2^64, permutes the 64-bit numbers.
    factors = mix(np.arange(1, config.num_permutations + 1, dtype=np.uint64)) | np.uint64(1)
    shifts = mix(np.arange(1, config.num_permutations + 1, dtype=np.uint64) << np.uint64(32))
    bands: Hashes = np.empty((len(block.starts) - 1, config.num_bands), np.uint64)
    for band in range(config.num_bands):
        hashes: Hashes = np.full(len(bands), band, np.uint64)
        for row in range(band * rows, (band + 1) * rows):
            permuted = block.hashes * factors[row] + shifts[row]
            smallest = np.minimum.reduceat(permuted, block.starts[:-1])
            hashes = mix(hashes * np.uint64(0x9E3779B97F4A7C15) + smallest)
        bands[:, band] = hashes
    return bands


def _ranges(starts: Positions, lengths: Positions) -> Positions:
    """Return starts[i], starts[i] + 1, ..., lengths[i] numbers each, concatenated over i."""
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    positions: Positions = np.repeat(starts, lengths) + offsets
    return positions
