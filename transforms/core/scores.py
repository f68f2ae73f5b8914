"""Scores of encoders: the record that evaluations write and reports read.

`<run>/scores/scores.json` is a list of scores, each an object with the fields of `Score`.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

FILE_NAME = "scores.json"
"""Name of the file with all scores, in the `scores` folder of a run."""


@dataclass(frozen=True)
class Score:
    """One score, or the mean over several seeds. All scores and errors are in percent, 0 to 100.

    Fields with a default may be missing in files of earlier versions.
    """

    encoder: str
    """trained, untrained (the same architecture with fresh weights) or pixels."""
    dataset: str
    protocol: str
    """Name of the evaluation protocol, such as knn or logistic."""
    metric: str
    """What was measured, such as accuracy."""
    value: float
    error: float | None = None
    """Standard error due to the number of test pictures; None if unknown."""
    spread: float | None = None
    """Standard deviation over seeds; None for a single one."""
    values: list[float] = field(default_factory=list)
    """Score of each seed."""
    chance: float | None = None
    """Score of always predicting the most frequent class; None if unknown."""
    num_classes: int | None = None
    num_train: int | None = None
    """Training and validation pictures; for naming, the generated images."""
    num_test: int | None = None
    details: list[dict[str, Any]] = field(default_factory=list)
    """For each seed, what the protocol chose (JSON values)."""
    interval: list[float] | None = None
    """Ends of the 95 % interval, by bootstrap over the test pictures; None if unknown."""
    unreadable: list[str] = field(default_factory=list)
    """Pictures of the data set that could not be decoded and are left out."""
    features_s: float | None = None
    """Seconds for the features of all seeds; little if they were on disk."""
    protocol_s: float | None = None
    """Seconds for the rest of the protocol, all seeds together."""

    @property
    def uncertainty(self) -> float | None:
        """The number to print after ±: the spread over seeds, or the error of a single one."""
        return self.error if self.spread is None else self.spread

    def __str__(self) -> str:
        uncertainty = "" if self.uncertainty is None else f" ± {self.uncertainty:.1f}"
        return f"{self.value:.1f}{uncertainty}"


def encode_scores(scores: Iterable[Score]) -> bytes:
    """Return the content of a file of scores."""
    rows = [dataclasses.asdict(score) for score in scores]
    return json.dumps(rows, indent=1).encode("utf-8")


def decode_scores(content: bytes) -> list[Score]:
    """Read the content of a file of scores.

    Raises:
        ValueError, LookupError, TypeError: It is not a list of scores; see `errors.reading`.
    """
    rows = json.loads(content)
    if not isinstance(rows, list):
        raise ValueError("expected a list of scores")
    return [decode_score(row) for row in rows]


def decode_score(values: Mapping[str, Any]) -> Score:
    """Read one score from parsed JSON; unknown fields are left out.

    Raises:
        ValueError, LookupError, TypeError: It is not a score.
    """
    known = {f.name: values[f.name] for f in dataclasses.fields(Score) if f.name in values}
    score = Score(**known)
    for name in ("value", "error", "spread", "chance"):
        number = getattr(score, name)
        optional = name != "value"
        if not isinstance(number, int | float) and not (optional and number is None):
            raise ValueError(f"{name} is {number!r}: expected a number")
    return score
