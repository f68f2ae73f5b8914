"""Columns of 64-bit hashes: mixed, compared with the row before, and reduced to different rows."""

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]


def mix(values: Hashes) -> Hashes:
    """A bijection of 64-bit numbers without visible order (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def changes(column: Hashes) -> NDArray[np.bool_]:
    """Where a column differs from the row before: [N] -> [N], true at the first row."""
    new = np.ones(len(column), bool)
    new[1:] = column[1:] != column[:-1]
    return new


def distinct(major: Hashes, minor: Hashes) -> tuple[Hashes, Hashes]:
    """The different rows of two columns, sorted by the first, then by the second."""
    order = np.lexsort((minor, major))
    major, minor = major[order], minor[order]
    new = changes(major) | changes(minor)
    return major[new], minor[new]
