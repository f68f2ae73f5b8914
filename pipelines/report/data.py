"""Content of the report, gathered from the files that the stages wrote.

Only committed files are read, so the report of a run does not depend on when and where it is
written. A stage that has not run is `None`, not an error.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report.corpus import CaptionFacts, Example, ImageFacts, caption_facts, image_facts
from pipelines.report.stages import StageSummary, read_settings, summarise
from transforms.core import storage
from transforms.core.errors import MissingFileError, reading
from transforms.core.scores import FILE_NAME, Score, decode_scores
from transforms.core.stages import STAGES


@dataclass(frozen=True)
class TrainingSummary:
    """Logged values, size and settings of the training."""

    curves: Mapping[str, Sequence[tuple[int, float]]]
    """Name -> (step, value), ascending."""
    num_bytes: int
    """Size of all files in the training's folder."""
    settings: Mapping[str, Any]
    """Content of `run.yaml`."""

    @property
    def last_step(self) -> int:
        """Number of the last logged step, counted from 1."""
        return 1 + max(points[-1][0] for points in self.curves.values())


@dataclass(frozen=True)
class RunReport:
    """Content of the page."""

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
        run: Folder or URL of the run.
        num_examples: Number of captions with their images.
        num_captions: Number of random captions.

    Raises:
        DamagedFileError: A file is damaged.
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
    """Return the report without its pictures and with only the last value of each curve."""
    content = dataclasses.asdict(dataclasses.replace(report, examples=(), training=None, scores=()))
    del content["examples"]
    content["scores"] = [
        {
            "dataset": score.dataset,
            "protocol": score.protocol,
            "metric": score.metric,
            "encoder": score.encoder,
            "value": score.value,
            "error": score.uncertainty,
            "chance": score.chance,
        }
        for score in report.scores
    ]
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
    with reading(url):
        for values in map(json.loads, lines):
            step = values.pop("step")
            for name, value in values.items():
                curves.setdefault(name, []).append((step, value))
    if not curves:
        return None
    folder = storage.join(run, "train")
    num_bytes = sum(storage.list_files(folder).values())
    return TrainingSummary(curves, num_bytes, read_settings(storage.join(folder, "run.yaml")))


def _scores(run: str) -> list[Score]:
    url = storage.join(run, "scores", FILE_NAME)
    try:
        content = storage.read_bytes(url)
    except MissingFileError:
        return []
    with reading(url):
        return decode_scores(content)
