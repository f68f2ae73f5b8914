"""Base class of the objectives: how a batch becomes losses and gradients.

An objective is one module with a config section (`ObjectiveConfig`) and a class (`Objective`), and
one entry in `trainer.objectives.registry`. Nothing else in the trainer depends on which objectives
there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from trainer import distributed
from trainer.data.batch import Batch, Distortion
from trainer.data.photometric import PhotometricConfig, augment, to_device
from trainer.data.shard_reader import Sample
from trainer.execution import gradients_wait
from trainer.losses import fused
from trainer.models.vit import EncoderNetwork
from trainer.objectives.micro_batch import (
    MicroBatch,
    Positives,
    StepMasks,
    image_ids,
    split_batch,
)
from transforms.core.config import Config

if TYPE_CHECKING:
    from trainer.config import TrainConfig

TargetReader = Callable[[Sample], Tensor]
"""Reads from a sample what the objective needs besides the images: int64 [W]."""

Terms = dict[str, Tensor]
"""Scalars by name: "loss", and the unweighted terms that it consists of."""


class ObjectiveConfig(Config):
    """Section `objective` of a training; each objective has its own subclass."""

    kind: str
    """Name of the objective; in a subclass a `Literal` with its value as the default."""


class TeacherlessConfig(ObjectiveConfig):
    """Section of an objective without a teacher.

    Earlier versions required `teacher: false` and `ibot_weight: 0` in it. Files with these values
    are still accepted.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_old_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("teacher"):
            raise ValueError(
                f"kind is {values.get('kind')!r}, which has no teacher: expected no key teacher"
            )
        no_effect = {"teacher": False, "ibot_weight": 0}
        return {k: v for k, v in values.items() if k not in no_effect or v != no_effect[k]}


SettingsT = TypeVar("SettingsT", bound=ObjectiveConfig)


class Objective(ABC, Generic[SettingsT]):
    """Losses and gradients of a step.

    The class methods describe the objective before there are networks. They take the config of the
    whole training; `settings_of` returns the objective's own section of it.

    Args:
        config: Config of the training.
        student: The network that is trained, perhaps wrapped to spread it over several ranks.
        teacher: The teacher's network, None for objectives without one.
    """

    settings_class: ClassVar[type[ObjectiveConfig]]
    """Class of the objective's section of the config."""
    takes_local_crops: ClassVar[bool] = False
    """Whether the objective uses local crops; if not, `crops.num_local` must be 0."""
    one_image_per_caption: ClassVar[bool] = False
    """Whether a step takes one image of each caption, drawn again in each epoch, or all of them."""

    def __init__(
        self, config: "TrainConfig", student: nn.Module, teacher: nn.Module | None = None
    ) -> None:
        self.config = config
        self.settings = self.settings_of(config)
        self.student = student
        self.teacher = teacher
        self.collapse_metrics: Terms = {}
        """Collapse metrics of the last step; without a teacher, of its last micro-batch."""
        parameter = next(student.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @classmethod
    def settings_of(cls, config: "TrainConfig") -> SettingsT:
        """Return the objective's own section of the config."""
        return cast(SettingsT, config.objective)

    @classmethod
    def images_per_caption(cls, config: "TrainConfig") -> int:
        """Return the number of images of each caption that a step takes."""
        return 1 if cls.one_image_per_caption else config.images_per_caption

    @classmethod
    @abstractmethod
    def build_networks(cls, config: "TrainConfig") -> tuple[EncoderNetwork, EncoderNetwork | None]:
        """Return student and teacher (None without one), on the CPU.

        Same seed, same weights; the global random state is left alone.

        Raises:
            ConfigError, StorageError: The networks depend on data that cannot be read.
        """

    @classmethod
    def target_reader(cls, config: "TrainConfig") -> TargetReader | None:
        """Return what fills `Batch.targets`; None if the objective needs images only.

        Raises:
            ConfigError, StorageError: The targets depend on data that cannot be read.
        """
        return None

    @classmethod
    def photometric(cls, config: "TrainConfig") -> PhotometricConfig:
        """Return the colour augmentation of crops."""
        return config.photometric

    @classmethod
    def distortion(cls, config: "TrainConfig") -> Distortion | None:
        """Return what else changes global crops on the CPU, before colours; None if nothing does.

        It is sent to the loader's processes, so it must pickle.
        """
        return None

    @classmethod
    def captions_together(cls, config: "TrainConfig") -> int:
        """Return how many captions that follow each other must be in the same micro-batch."""
        return 1

    @classmethod
    def patch_share(cls, config: "TrainConfig") -> float:
        """Return the share of patches in the mask that is drawn with each global crop."""
        return 0.0

    @classmethod
    def flops_beyond_student(cls, config: "TrainConfig") -> float:
        """Return a step's operations for one image besides the student's encoder.

        Count with `trainer.models.flops`: teacher, heads, and the comparison with the batch.
        """
        return 0.0

    @classmethod
    def check(cls, config: "TrainConfig") -> None:
        """Check that the rest of the config fits the objective, `accumulation` included.

        Raises:
            ValueError: It does not; one sentence with key, value and what was expected.
        """

    @classmethod
    def warnings(cls, config: "TrainConfig") -> list[str]:
        """Return a sentence for each setting that does not do what it seems to."""
        return []

    def backward(self, batch: Batch, step: int) -> Terms:
        """Add the gradient of the loss to the student's parameters.

        The wrapper of the student averages the gradients over the ranks. The mean of the returned
        terms over the ranks is that of the whole batch, too.

        Args:
            batch: Captions that this rank has in the step, on the CPU.
            step: Number of finished optimiser steps.

        Returns:
            The terms, detached. They are on the device, which may not have computed them yet.
        """
        losses = self.losses(batch, step)
        totals: Terms = {}
        for number, terms_of_micro_batch in enumerate(losses, start=1):
            with gradients_wait(self.student, last=number == len(losses)):
                terms = terms_of_micro_batch()
                terms["loss"].backward()
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.detach()
        return totals

    @abstractmethod
    def losses(self, batch: Batch, step: int) -> list[Callable[[], Terms]]:
        """Return one function per micro-batch, which computes its part of "loss" and each term."""

    def run(self, network: nn.Module, *inputs: Tensor | None) -> Any:
        """Return the output of a network, computed in the precision of the config."""
        # Without autocast's cache, blocks that are computed again give what they gave before.
        with torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.config.precision == "bf16",
            cache_enabled=False,
        ):
            return network(*inputs)

    def micro_batches(
        self, batch: Batch, positives: Positives = "caption", masks: StepMasks | None = None
    ) -> list[MicroBatch]:
        """Return the batch in `accumulation` micro-batches, augmented and on the device.

        Args:
            batch: Captions of this rank, on the CPU.
            positives: Which images get the same id: those of a caption, or only the same image.
            masks: Patches to hide, None without iBOT.
        """
        ids = image_ids(batch, positives, self.images_per_caption(self.config))
        return split_batch(
            batch,
            ids,
            masks,
            self.config.accumulation,
            self._augment,
            self.device,
            seed=self.config.seed if self.config.model.drop_path else None,
        )

    def _augment(self, pixels: Tensor, draws: Tensor) -> Tensor:
        images = augment(
            to_device(pixels, self.device),
            draws,
            self.photometric(self.config),
            mean=self.config.model.mean,
            std=self.config.model.std,
            run=partial(fused.run, compiled=self.config.execution.compile),
        )
        return images.to(self.dtype)


def gather_keys(embeddings: Tensor) -> Tensor:
    """Return the rows of every rank in at least float32, with the gradient of each rank's loss.

    The backward pass sums the gradients of all ranks for a key: bfloat16 is too coarse for that.
    """
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    return distributed.gather(embeddings.to(dtype))
