"""The names of everything that is counted: each drop, failure and retry has its name here.

A stage counts through a `Tally`; the tally of a shard is part of its commit record, so counts are
summed over commit records and are right however often workers died.
"""

from collections import Counter
from enum import StrEnum


class Count(StrEnum):
    """Names of counters, as they stand in commit records and reports."""

    RETRIES = "retries"
    """Records that were made again with a fresh seed."""

    TOKENS = "tokens"
    """Tokens that the text engine generated."""

    DROP_EMPTY = "drop_empty"
    DROP_TOO_SHORT = "drop_too_short"
    DROP_TOO_LONG = "drop_too_long"
    DROP_PROMPT_LEAKED = "drop_prompt_leaked"
    DROP_CONCEPT_MISSING = "drop_concept_missing"
    DROP_NON_TEXT = "drop_non_text"
    DROP_REPEATED = "drop_repeated"
    DROP_BLOCKED = "drop_blocked"

    DROP_NO_PLACE = "drop_no_place"
    """Answers to where something is that do not start with in, on, at, by or the like."""
    DROP_NAMES_CONCEPT = "drop_names_concept"
    """Places that say no more than the concept's name."""
    DROP_TOO_FEW_PLACES = "drop_too_few_places"
    """Concepts for which a model found hardly any place."""

    IMAGE_NOT_FINITE = "image_not_finite"
    """Images with a value that is no number."""
    IMAGE_BLANK = "image_blank"
    """Images of one colour."""
    IMAGE_FLAGGED = "image_flagged"
    """Images that the model's safety checker flags."""
    REPAINTED = "repainted"
    """Images that were painted again with the next seed."""

    ENGINE_ERROR = "engine_error"
    """Records on which the model raised."""

    LOST_RECORD = "lost_record"
    """Failures whose reason died with the worker that had published the shard."""


class Tally:
    """Counts by name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, name: Count, number: int = 1) -> None:
        """Add `number` to the counter `name`."""
        self._counts[str(name)] += number

    def as_dict(self) -> dict[str, int]:
        """The counts in name order."""
        return dict(sorted(self._counts.items()))
