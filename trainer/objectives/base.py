"""What every objective has: its settings, and how a step's batch becomes gradients.

Source: paper section 3.3 and tables 4 and 5. The objectives that the paper compares are settings:

    SynCLR              the defaults
    + EMA + multi-crop  ibot_weight 0
    + EMA + iBOT        crops.num_local 0
    + EMA               ibot_weight 0, crops.num_local 0
    StableRep           teacher false, ibot_weight 0, crops.num_local 0
    SimCLR              as StableRep, positives image, crops.num_global 2
    supervised, CLIP    `kind`, as StableRep otherwise
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from trainer import distributed
from trainer.data.batch import Batch
from trainer.data.photometric import PhotometricConfig, augment, to_device
from trainer.execution import Precision, gradients_wait
from trainer.losses import fused
from trainer.models.heads import ContrastiveHeadConfig, PrototypeHeadConfig
from trainer.models.text_encoder import TextConfig
from trainer.models.vit import EncoderConfig
from trainer.objectives.micro_batch import Piece, StepMasks, image_ids, split
from transforms.core.config import Config, Probability, no_fingerprint
from transforms.core.seeding import derive


class ObjectiveConfig(Config):
    """What is learned, and the settings of the losses."""

    kind: Literal["contrastive", "supervised", "clip"] = "contrastive"
    """What the images of a caption are compared with: each other (SynCLR and its relatives), the
    caption's concept as one of all classes, or the caption's text (one image per step)."""
    teacher: bool = True
    """Keys and targets from an EMA of the student; without, keys are the student's own embeddings
    and there is no predictor (StableRep, SimCLR)."""
    positives: Literal["caption", "image"] = "caption"
    """Positives of an anchor: images of its caption (paper), or crops of its image alone
    (SimCLR)."""
    temperature: PositiveFloat = 0.08
    """Temperature of the contrastive loss (paper: 0.08; the authors' code: 0.1)."""
    global_weight: NonNegativeFloat = 1.0
    """Weight of the contrastive loss of global crops (paper: 1)."""
    local_weight: NonNegativeFloat = 1.0
    """Weight of the contrastive loss of local crops (paper: 1)."""
    ibot_weight: NonNegativeFloat = 1.0
    """Weight of iBOT (paper: 1); 0 leaves it and its head out."""
    masked_images: Probability = 0.5
    """Share of a batch's global crops that iBOT masks (paper: 0.5)."""
    masked_patches: Probability = 0.5
    """Share of a masked crop's patches that are hidden (paper: 0.5)."""
    student_temperature: PositiveFloat = 0.1
    """Temperature of the student's prototype logits in iBOT (the authors' code: 0.1)."""
    teacher_temperature: tuple[PositiveFloat, PositiveFloat] = (0.04, 0.07)
    """Temperature of the teacher's prototype logits in iBOT: first and last (paper: 0.04, 0.07)."""
    teacher_temperature_steps: NonNegativeInt = 4000
    """Steps over which the teacher's temperature changes, linearly (paper: 4,000)."""
    sinkhorn_iterations: NonNegativeInt = 3
    """Iterations of Sinkhorn-Knopp over iBOT's targets (paper: 3); with 0 they are a softmax."""
    contrastive_head: ContrastiveHeadConfig = ContrastiveHeadConfig()
    prototype_head: PrototypeHeadConfig = PrototypeHeadConfig()
    text: TextConfig = TextConfig()
    contrastive_chunk: PositiveInt | None = no_fingerprint(None)
    """Anchors at a time in the contrastive loss; null takes a piece's anchors at once."""
    ibot_chunk: PositiveInt | None = no_fingerprint(2048)
    """Masked tokens at a time in iBOT; null takes a piece's tokens at once."""

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.kind != "contrastive" and self.teacher:
            raise ValueError(f"kind is {self.kind!r}, which has no teacher: expected teacher=false")
        if self.ibot_weight and not self.teacher:
            raise ValueError("iBOT needs a teacher: without one, set objective.ibot_weight=0")
        if self.ibot_weight and not (self.masked_images and self.masked_patches):
            raise ValueError(
                "masked_images or masked_patches is 0, so that iBOT has nothing to learn from: "
                "expected ibot_weight=0, which leaves it out"
            )
        return self


@dataclass(frozen=True)
class StepSettings:
    """What an objective has to know of the training around it."""

    model: EncoderConfig
    """For normalisation."""
    photometric: PhotometricConfig
    """The settings of the draws."""
    images_per_caption: int
    """M, of those that a step takes."""
    captions_per_batch: int
    """Over all ranks."""
    accumulation: int
    """Pieces that a rank's captions are taken in."""
    precision: Precision
    """`bf16` runs the networks under autocast; losses are in float32 always."""
    compiled: bool
    """Whether losses and colours are compiled, as blocks are."""
    seed: int
    """Of the training."""


class Objective(ABC):
    """Losses and gradients of a step.

    Args:
        config: The losses' settings.
        settings: Of the training.
        student: Trained; the network itself, or what spreads it over several ranks.
        teacher: None without one.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        settings: StepSettings,
        student: nn.Module,
        teacher: nn.Module | None = None,
    ) -> None:
        self.config = config
        self.settings = settings
        self.student = student
        self.teacher = teacher
        self.signs: dict[str, Tensor] = {}
        """Collapse metrics of the last step; of its last micro-batch without a teacher."""
        parameter = next(student.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    def backward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Add the gradient of the loss to the student's parameters.

        The wrapper of the student averages these gradients over the ranks; the mean of the terms
        over the ranks is the batch's, too.

        Args:
            batch: This rank's captions of the step, on the CPU.
            step: Finished optimiser steps.

        Returns:
            "loss" and its unweighted terms, detached scalars that nobody has waited for.
        """
        torch.manual_seed(derive(self.settings.seed, "drop path", step, distributed.rank()))
        losses = self._losses(batch, step)
        totals: dict[str, Tensor] = {}
        for number, terms_of_piece in enumerate(losses, start=1):
            with gradients_wait(self.student, last=number == len(losses)):
                terms = terms_of_piece()
                terms["loss"].backward()
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.detach()
        return totals

    @abstractmethod
    def _losses(self, batch: Batch, step: int) -> list[Callable[[], dict[str, Tensor]]]:
        """For each piece of the batch, what computes its part of "loss" and of each term."""

    def _run(self, network: nn.Module, *inputs: Tensor | None) -> Any:
        # Without autocast's cache blocks that are computed again do as they did the first time.
        with torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.settings.precision == "bf16",
            cache_enabled=False,
        ):
            return network(*inputs)

    def _pieces(self, batch: Batch, masks: StepMasks | None = None) -> list[Piece]:
        ids = image_ids(batch, self.config.positives, self.settings.images_per_caption)
        return split(batch, ids, masks, self.settings.accumulation, self._augment, self.device)

    def _augment(self, pixels: Tensor, draws: Tensor) -> Tensor:
        images = augment(
            to_device(pixels, self.device),
            draws,
            self.settings.photometric,
            mean=self.settings.model.mean,
            std=self.settings.model.std,
            run=partial(fused.run, compiled=self.settings.compiled),
        )
        return images.to(self.dtype)


def gather_keys(embeddings: Tensor) -> Tensor:
    """The rows of every rank in at least float32, with the gradient of each rank's loss.

    What the ranks say about a key is added up on the way back: too coarse for bfloat16.
    """
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    return distributed.gather(embeddings.to(dtype))
