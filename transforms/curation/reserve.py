"""Estimate of the number of captions to write so that enough different ones are left.

A model writes the more duplicates the more it has written. If each of D captions is equally likely,
n captions hold k = D (1 - exp(-n / D)) different ones, and a share exp(-n / D) = 1 - k / D of the
next ones is new. So D follows from k and the share that was new among the newest captions. Real
captions are not equally likely, so D is a guess: good enough to tell a reserve that is a little too
small from a source that is exhausted.
"""

import math

from transforms.curation.dedup import Summary

LATE_SHARE = 0.2
"""Share of the written captions, the newest ones, that show how many of more captions are new."""

_EXPECTED = 3.0
"""Expected number of new captions above which their absence is no chance (p = 0.05)."""


def most_captions(num_raw: int, summary: Summary) -> float:
    """Return about how many different captions there are: infinity if nearly all are new.

    Args:
        num_raw: Captions that were written.
        summary: Result of deduplication.
    """
    num_kept, num_distinct = sum(summary.num_kept), sum(summary.num_distinct)
    if not summary.num_late:  # Scratch files of an earlier version do not say.
        return math.inf
    # The rule of succession: a few late captions say little.
    share = (sum(summary.num_late) + 1) / (LATE_SHARE * num_raw + 2)
    # Which of two near duplicates is dropped does not depend on which was written first: the mean
    # caption is dropped by half of the captions that drop one more.
    new = share * (num_kept / max(num_distinct, 1)) ** 2
    return num_kept / (1 - new) if new < 1 - 1e-6 else math.inf


def all_can_come(num_raw: int, summary: Summary, most: int) -> bool:
    """Return whether captions that are not there yet may still come, if there are `most`.

    They cannot if several of them were to be expected among the late captions, and none was there:
    filters drop them.
    """
    missing = 1 - sum(summary.num_distinct) / most
    return sum(summary.num_late) > 0 or missing * LATE_SHARE * num_raw < _EXPECTED


def raw_needed(num_wanted: int, num_raw: int, num_kept: int, most: float) -> float:
    """Return how many captions have to be written so that `num_wanted` different ones are left.

    Args:
        num_wanted: At most `most`.
        num_raw: Captions that were written.
        num_kept: Captions of these that are left, fewer than are wanted.
        most: Number of different captions that exist; infinity without a limit.
    """
    if math.isinf(most):
        return num_wanted * num_raw / max(num_kept, 1)
    # The last different caption comes when about half of one is missing.
    left = most - num_kept
    return num_raw + most * math.log(left / (most - num_wanted + 0.5) if left > 0.5 else 1.0)
