"""Names of all counters: every reason for a drop, a failure or a retry.

A stage counts with a `Tally`. The tally of a shard is part of its commit record, so sums over
commit records are right however often workers died.
"""

from collections import Counter
from enum import StrEnum


class Count(StrEnum):
    """Names of counters in commit records and reports."""

    RETRIES = "retries"
    """Records that were made again with a new seed."""

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
    """Answers about a place that do not start with a preposition such as in, on, at or by."""
    DROP_NAMES_CONCEPT = "drop_names_concept"
    """Places that only repeat the name of the concept."""
    DROP_TOO_FEW_PLACES = "drop_too_few_places"
    """Concepts for which a model found too few places."""

    IMAGE_NOT_FINITE = "image_not_finite"
    """Images with a value that is not finite."""
    IMAGE_BLANK = "image_blank"
    """Images of one colour."""
    IMAGE_FLAGGED = "image_flagged"
    """Images that the safety checker of the model rejects."""
    REPAINTED = "repainted"
    """Images that were painted again with the next seed."""

    ENGINE_ERROR = "engine_error"
    """Records for which the model raised an error."""

    LOST_RECORD = "lost_record"
    """Failures whose reason is lost: the worker that published the shard died before writing it."""


class Tally:
    """Counts by name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, name: Count, number: int = 1) -> None:
        """Add `number` to the counter `name`."""
        self._counts[str(name)] += number

    def as_dict(self) -> dict[str, int]:
        """Return the counts, sorted by name."""
        return dict(sorted(self._counts.items()))
