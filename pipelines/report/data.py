"""What a report says about a run, gathered from the files that the stages left.

Everything comes from what is committed, so the report of a run is the same whenever and wherever it
is made. A stage that has not run is `None`, not an error.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report.corpus import CaptionFacts, Example, ImageFacts, caption_facts, image_facts
from pipelines.report.stages import StageSummary, parsed, read_settings, summarise
from transforms.core import storage
from transforms.core.errors import MissingFileError
from transforms.core.stages import STAGES


@dataclass(frozen=True)
class TrainingSummary:
    """The training: each logged value over the steps."""

    curves: Mapping[str, Sequence[tuple[int, float]]]
    """Name -> (step, value), ascending."""
    num_bytes: int
    """Of everything that it has stored."""
    settings: Mapping[str, Any]

    @property
    def last_step(self) -> int:
        """The last step that was logged, counted from 1."""
        return 1 + max(points[-1][0] for points in self.curves.values())


@dataclass(frozen=True)
class Score:
    """One line of the score sheet, in percent."""

    dataset: str
    protocol: str
    metric: str
    encoder: str
    value: float
    error: float | None
    chance: float | None


@dataclass(frozen=True)
class RunReport:
    """Everything on the page."""

    run: str
    stages: Mapping[str, StageSummary | None]
    captions: CaptionFacts | None
    examples: Sequence[Example]
    images: ImageFacts | None
    training: TrainingSummary | None
    scores: Sequence[Score]


def gather(run: str, num_examples: int, num_captions: int) -> RunReport:
    """Read a run.

    Args:
        run: Its folder.
        num_examples: Captions with their images.
        num_captions: Random captions.

    Raises:
        DamagedFileError: A file of it does not hold what it must.
        StorageError: A file cannot be read.
    """
    stages, records = {}, {}
    for name in STAGES:
        stages[name], records[name] = summarise(run, name)
    raw = stages["captions-raw"]
    examples, images = image_facts(run, records["images"], num_examples)
    return RunReport(
        run=run,
        stages=stages,
        captions=caption_facts(run, records, raw.settings if raw else {}, num_captions),
        examples=examples,
        images=images,
        training=_training(run),
        scores=_scores(run),
    )


def as_json(report: RunReport) -> dict[str, Any]:
    """The report without its pictures; of the training's curves, the last values."""
    content = dataclasses.asdict(dataclasses.replace(report, examples=(), training=None))
    del content["examples"]
    if report.training is not None:
        content["training"] = {
            "num_steps": report.training.last_step,
            "last": {name: points[-1][1] for name, points in report.training.curves.items()},
        }
    return content


def _training(run: str) -> TrainingSummary | None:
    url = storage.join(run, "train", "metrics.jsonl")
    try:
        content = storage.read_bytes(url).decode("utf-8", errors="replace")
    except MissingFileError:
        return None
    # A training that was killed may have left half a line.
    lines = [line for line in content.split("\n")[:-1] if line]
    curves: dict[str, list[tuple[int, float]]] = {}
    for values in parsed(url, lines, lambda found: [json.loads(line) for line in found]):
        step = values.pop("step")
        for name, value in values.items():
            curves.setdefault(name, []).append((step, value))
    if not curves:
        return None
    folder = storage.join(run, "train")
    num_bytes = sum(storage.list_files(folder).values())
    return TrainingSummary(curves, num_bytes, read_settings(storage.join(folder, "run.yaml")))


def _scores(run: str) -> list[Score]:
    url = storage.join(run, "scores", "scores.json")
    try:
        content = storage.read_bytes(url)
    except MissingFileError:
        return []
    return parsed(url, content, lambda c: [_score(row) for row in json.loads(c)])


def _score(row: Mapping[str, Any]) -> Score:
    error = row["spread"] if row.get("spread") is not None else row.get("error")
    return Score(
        row["dataset"],
        row["protocol"],
        row["metric"],
        row["encoder"],
        row["value"],
        error,
        row.get("chance"),
    )


def score_table(scores: Iterable[Score]) -> tuple[list[str], list[list[Score | None]]]:
    """The score sheet as a table.

    Returns:
        The encoders, in the order of the rows; and per data set and protocol one line with the
        score of each encoder.
    """
    found = list(scores)
    encoders = list(dict.fromkeys(score.encoder for score in found))
    lines: dict[tuple[str, str, str], list[Score | None]] = {}
    for score in found:
        key = (score.dataset, score.protocol, score.metric)
        line = lines.setdefault(key, [None] * len(encoders))
        line[encoders.index(score.encoder)] = score
    return encoders, list(lines.values())
