"""Supervised cross-entropy with the AugReg recipe: the supervised row of the paper's table 5.

Source: Steiner et al., "How to train your ViT?" (2021), which the paper names for this row. The
defaults are what AugReg chose for ViT-B/16 on ImageNet-1k, as the name of their checkpoint says
(aug_strong2, do_0.1): RandAugment with two operations of magnitude 20, mixup 0.8 and dropout 0.1.
Optimiser, stochastic depth and crops are in the other sections of the config.

RandAugment, mixup and the loss are timm's. Deliberate differences: timm's RandAugment has no Cutout
and keeps SolarizeAdd at 128 or below. Mixup mixes the images of two captions that are neighbours in
the order of the step, instead of the first with the last of a device; so the number of ranks
changes nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor
from torch.nn import functional

from trainer.data.batch import Batch, Distortion
from trainer.data.photometric import PhotometricConfig
from trainer.data.rand_augment import RandAugment, seeded
from trainer.models.dropout import set_keys, use_dropout
from trainer.objectives.base import TeacherlessConfig, Terms
from trainer.objectives.collapse import feature_metrics
from trainer.objectives.micro_batch import MicroBatch
from trainer.objectives.supervised import Classifier, ConceptObjective
from transforms.core.seeding import derive

if TYPE_CHECKING:
    from trainer.config import TrainConfig

UNCHANGED = PhotometricConfig(
    jitter=0,
    grey=0,
    global_blur_only=0,
    global_blur=0,
    global_solarise=0,
    local_blur=0,
    downsample=0,
)
"""Colour augmentation that changes nothing: RandAugment takes its place."""


class AugRegConfig(TeacherlessConfig):
    """Images are classified by the concept of their caption, with AugReg's regularisation."""

    kind: Literal["augreg"] = "augreg"
    """`augreg`: images are classified by the concept of their caption, with RandAugment, mixup and
    dropout instead of the section `photometric`."""
    num_ops: NonNegativeInt = 2
    """Operations of RandAugment for each crop (AugReg: 2); 0 leaves it out."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 20
    """Magnitude of RandAugment (AugReg: 20 for B/16 on ImageNet-1k)."""
    mixup: NonNegativeFloat = 0.8
    """Both parameters of the beta distribution of mixup's share, which is drawn for each step
    (AugReg: 0.8 for B/16 on ImageNet-1k); 0 leaves mixup out."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the elements that dropout sets to zero (AugReg: 0.1 for B/16 on ImageNet-1k)."""


class AugReg(ConceptObjective[AugRegConfig]):
    """The loss is the only term."""

    settings_class = AugRegConfig

    @classmethod
    def build_networks(cls, config: "TrainConfig") -> tuple[Classifier, None]:
        """Return the student, with dropout; there is no teacher."""
        student, teacher = super().build_networks(config)
        if rate := cls.settings_of(config).dropout:
            use_dropout(student.encoder, rate)
        return student, teacher

    @classmethod
    def photometric(cls, config: "TrainConfig") -> PhotometricConfig:
        """Return settings that change no colour."""
        return UNCHANGED

    @classmethod
    def distortion(cls, config: "TrainConfig") -> Distortion | None:
        """Return RandAugment."""
        settings = cls.settings_of(config)
        return RandAugment(settings.num_ops, settings.magnitude) if settings.num_ops else None

    @classmethod
    def captions_together(cls, config: "TrainConfig") -> int:
        """Return 2 with mixup, which needs both captions of a pair."""
        return 2 if cls.settings_of(config).mixup else 1

    @classmethod
    def warnings(cls, config: "TrainConfig") -> list[str]:
        """Return a warning about colours that are set without effect."""
        if config.photometric == PhotometricConfig():
            return []
        return ["The section photometric has no effect with objective.kind 'augreg'."]

    def losses(self, batch: Batch, step: int) -> list[Callable[[], Terms]]:
        """Return the cross-entropy of each micro-batch."""
        parts, seeds = self.labelled(batch), self._dropout_seeds(batch)
        size = len(seeds) // len(parts)
        return [
            partial(self._terms, part, labels, seeds[number * size : (number + 1) * size], step)
            for number, (part, labels) in enumerate(parts)
        ]

    def _dropout_seeds(self, batch: Batch) -> list[int]:
        """Return a seed for each crop, which depends on its position in the training alone."""
        return [
            derive(self.config.seed, "dropout", position, number, bits=64)
            for position in batch.positions.tolist()
            for number in range(self._crops_per_caption)
        ]

    @property
    def _crops_per_caption(self) -> int:
        return self.images_per_caption(self.config) * self.config.crops.num_global

    def _terms(self, part: MicroBatch, labels: Tensor, seeds: list[int], step: int) -> Terms:
        from timm.loss import SoftTargetCrossEntropy

        images, targets = self._mixed(part.global_images, labels, step)
        if self.settings.dropout:
            set_keys(self.student, seeds, self.device)
        logits, cls_tokens = self.run(self.student, images, part.global_seeds)
        self.collapse_metrics = feature_metrics(cls_tokens)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return {"loss": part.share * SoftTargetCrossEntropy()(logits.to(dtype), targets.to(dtype))}

    def _mixed(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return images [n, 3, H, W] and targets [n, classes], each mixed with its partner's.

        Partners are images of the same number of two captions that follow each other.
        """
        from timm.data import Mixup

        num_classes = len(self.concepts(self.config))
        alpha = self.settings.mixup
        if not alpha:
            return images, functional.one_hot(labels, num_classes)
        mix = Mixup(mixup_alpha=alpha, label_smoothing=0.0, num_classes=num_classes)
        # timm mixes the first row with the last, the second with the last but one, and so on.
        rows = torch.arange(len(images), device=images.device)
        first, second = rows.view(-1, 2, self._crops_per_caption).unbind(dim=1)
        order = torch.cat([first.flatten(), second.flatten().flip(0)])
        with seeded(derive(self.config.seed, "mixup", step)):
            mixed, targets = mix(images[order], labels[order])
        back = order.argsort()
        return mixed[back], targets[back]
