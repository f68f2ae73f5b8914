"""The runs of the paper as docs/train.md lists them, and overrides that make them small."""

import re
from dataclasses import dataclass

from tests.support.paths import PIPELINE_CONFIGS, ROOT, TRAINER_CONFIGS
from trainer.config import TrainConfig
from transforms.core.config import load_config

TABLE = ROOT / "docs" / "train.md"
_CELL = r"`([^`]+)`"
_ROW = re.compile(rf"^\| ([^|`]+) \| {_CELL} \| {_CELL} \| {_CELL} \| {_CELL} \|$", re.MULTILINE)

SMALL = [
    "captions_per_batch=4",
    "device=cpu",
    "precision=fp32",
    "model.image_size=16",
    "model.patch_size=8",
    "model.width=12",
    "model.depth=2",
    "model.num_heads=2",
    "crops.local_size=8",
    "execution.compile=false",
    "loader.num_workers=0",
]
_SMALL_OBJECTIVE = {
    "contrastive": [
        "objective.contrastive_head.hidden=16",
        "objective.contrastive_head.out=8",
        "objective.prototype_head.hidden=16",
        "objective.prototype_head.bottleneck=8",
        "objective.prototype_head.num_prototypes=12",
    ],
    "clip": [
        "objective.text.width=8",
        "objective.text.depth=1",
        "objective.text.num_heads=2",
        "objective.text.out=8",
    ],
}


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


def small_training(file: str, *overrides: str) -> TrainConfig:
    """Return a training's config with a very small encoder and heads.

    Args:
        file: Path of the config.
        overrides: Further overrides.
    """
    kind = load_config(TrainConfig, file).objective.kind
    return load_config(TrainConfig, file, [*SMALL, *_SMALL_OBJECTIVE.get(kind, []), *overrides])
