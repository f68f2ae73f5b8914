"""The runs of the paper as docs/train.md lists them, and its overrides that make them small."""

import re
from dataclasses import dataclass

from tests.support.paths import PIPELINE_CONFIGS, ROOT, TRAINER_CONFIGS
from trainer.config import TrainConfig
from transforms.core.config import load_config

TABLE = ROOT / "docs" / "train.md"
_CELL = r"`([^`]+)`"
_ROW = re.compile(rf"^\| ([^|`]+) \| {_CELL} \| {_CELL} \| {_CELL} \| {_CELL} \|$", re.MULTILINE)

_OVERRIDES = re.compile(r'^    ([A-Z]+)="([^"]*)"', re.MULTILINE)
_OF_OBJECTIVES = {"contrastive": "HEADS", "clip": "TEXT"}


@dataclass(frozen=True)
class Job:
    """A config of a row with its overrides."""

    file: str
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the config."""
        return self.file.rpartition("/")[2].removesuffix(".yaml")


@dataclass(frozen=True)
class PaperRun:
    """A row of the table."""

    name: str
    captions: Job
    images: Job
    training: Job
    evaluation: Job


def paper_runs() -> list[PaperRun]:
    """Return the rows of the table "Runs of the paper"."""
    return [
        PaperRun(
            name,
            _job(captions, PIPELINE_CONFIGS),
            _job(images, PIPELINE_CONFIGS),
            _job(training, TRAINER_CONFIGS),
            _job(evaluation, TRAINER_CONFIGS),
        )
        for name, captions, images, training, evaluation in _ROW.findall(TABLE.read_text())
    ]


def _job(cell: str, folder: object) -> Job:
    file, *overrides = cell.split()
    return Job(f"{folder}/{file}.yaml", tuple(overrides))


def small_overrides() -> dict[str, list[str]]:
    """Return the overrides that make a row small, by the name of their variable."""
    return {name: text.split() for name, text in _OVERRIDES.findall(TABLE.read_text())}


def small_training(file: str, *overrides: str) -> TrainConfig:
    """Return a training's config with a very small encoder and heads.

    Args:
        file: Path of the config.
        overrides: Further overrides.
    """
    small = small_overrides()
    own = _OF_OBJECTIVES.get(load_config(TrainConfig, file).objective.kind)
    objective = small[own] if own else []
    return load_config(TrainConfig, file, [*small["TRAINING"], *objective, *overrides])
