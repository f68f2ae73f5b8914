"""The config of a training, composed of sections that are defined in the modules they configure."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from trainer.checkpoints.files import CheckpointConfig
from trainer.data.crops import CropsConfig
from trainer.data.loader import LoaderConfig
from trainer.data.photometric import PhotometricConfig
from trainer.data.shard_reader import DataConfig
from trainer.execution import ExecutionConfig, Precision
from trainer.models.vit import EncoderConfig
from trainer.monitor.config import MonitorConfig
from trainer.objectives import registry
from trainer.objectives.registry import AnyObjectiveConfig, objective_of
from trainer.optim import OptimConfig
from transforms.core import storage
from transforms.core.config import Config, Place, no_fingerprint

CHANGEABLE = ("optim.clip_norm", "optim.learning_rate", "precision", "skip_steps")
"""Settings that change what is learned and can still be changed on a run, from its newest
checkpoint on. They are the remedies for a loss that is not finite; see
`trainer.training.settings_history`."""

StepRanges = tuple[tuple[NonNegativeInt, NonNegativeInt], ...]


class TrainConfig(Config):
    """A training; the defaults are the paper's final ViT-B/16 run, except for `optim.warmup`.

    Where the paper states nothing, they are from the authors' code.
    """

    moved: ClassVar[dict[str, str]] = {"data": "data.images"}

    run: Place = no_fingerprint()
    """Folder or URL of the run; results go to its `train` folder."""
    seed: int = 0
    """Seed of everything that is random."""
    data: DataConfig = DataConfig()
    captions: Place | None = no_fingerprint(None)
    """Folder or URL of the complete captions stage that the images come from; null is `captions` of
    the run. Only the objectives `supervised` and `augreg` read it, for the list of concepts."""
    images_per_caption: PositiveInt = 4
    """Images per caption in the shards (paper: 4)."""
    captions_per_batch: PositiveInt = 8192
    """Captions per optimiser step over all ranks (paper: 8,192; ablations: 2,048)."""
    accumulation: PositiveInt = no_fingerprint(1)
    """Micro-batches in which each rank takes its captions, to save memory."""
    steps: PositiveInt = 500_000
    """Optimiser steps (paper: 500k; scaling plots 300k; ablations 85k)."""
    skip_steps: StepRanges = ()
    """Steps that take their batch and update nothing: ranges [first, last]. May be changed on a
    run."""
    device: Literal["auto", "cpu", "cuda"] = no_fingerprint("auto")
    """`auto` is CUDA if there is any, otherwise the CPU; `cuda` fails without CUDA."""
    num_threads: PositiveInt | None = no_fingerprint(None)
    """Threads that compute in each process on a CPU; null is torch's choice. A very small encoder
    is fastest with one thread, since there is too little work to share."""
    precision: Precision = "bf16"
    """Precision of the networks' arithmetic; weights and losses are always float32. May be changed
    on a run."""
    log_every: PositiveInt = no_fingerprint(10)
    """Steps between two lines of metrics."""
    strict_versions: bool = no_fingerprint(False)
    """Refuse to continue with another major or minor version of a library that may change what
    is learned, such as torch; otherwise warn."""
    model: EncoderConfig = EncoderConfig()
    crops: CropsConfig = CropsConfig()
    photometric: PhotometricConfig = PhotometricConfig()
    objective: AnyObjectiveConfig = registry.DEFAULT
    optim: OptimConfig = OptimConfig()
    execution: ExecutionConfig = ExecutionConfig()
    loader: LoaderConfig = LoaderConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()

    @classmethod
    def of_this_version(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Add the keys of a training that began before they existed, and rename `norm: ln`."""
        found, head = dict(fields), "objective.contrastive_head"
        if "photometric.downsample" in found:
            old = "crop" if found["photometric.downsample"] else "image"
            found.setdefault("photometric.downsampled", old)
        if f"{head}.norm" in found and f"{head}.statistics" not in found:
            layer_norm = found[f"{head}.norm"] == "ln"
            apart = found.get("crops.num_local") and not layer_norm
            found[f"{head}.statistics"] = "apart" if apart else "together"
            if layer_norm:
                found[f"{head}.norm"] = "ln_relu"
        return found

    @field_validator("skip_steps", mode="wrap")
    @classmethod
    def _ranges(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> StepRanges:
        """Report any mistake in the ranges as one sentence about the whole key."""
        sentence = "expected ranges [[first,last],...] with 0 <= first <= last"
        try:
            ranges: StepRanges = handler(value)
        except ValidationError as error:
            raise ValueError(sentence) from error
        if any(first > last for first, last in ranges):
            raise ValueError(sentence)
        return ranges

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.crops.num_local and self.crops.local_size % self.model.patch_size:
            raise ValueError(
                f"crops.local_size {self.crops.local_size} is not a multiple of model.patch_size "
                f"{self.model.patch_size}"
            )
        if self.optim.warmup > self.steps:
            raise ValueError(f"optim.warmup {self.optim.warmup} is more than steps {self.steps}")
        objective = objective_of(self)
        if self.crops.num_local and not objective.takes_local_crops:
            raise ValueError(
                f"crops.num_local is {self.crops.num_local}: expected 0, since objective.kind "
                f"{self.objective.kind!r} does not use local crops"
            )
        objective.check(self)
        return self


def train_folder(config: TrainConfig) -> str:
    """Return the folder that the training writes to."""
    return storage.join(config.run, "train")


def data_folder(config: TrainConfig) -> str:
    """Return the folder or URL of the image shards."""
    return config.data.images or storage.join(config.run, "images")


def is_skipped(config: TrainConfig, step: int) -> bool:
    """Return whether a step updates nothing."""
    return any(first <= step <= last for first, last in config.skip_steps)


def batch_images(config: TrainConfig) -> int:
    """Return the number of images that a step takes, over all ranks."""
    return config.captions_per_batch * objective_of(config).images_per_caption(config)
