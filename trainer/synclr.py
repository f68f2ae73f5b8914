"""The objective: contrastive loss on global and local crops, and iBOT, with an EMA teacher.

Source: paper section 3.3. The objectives that the paper compares are settings of this
one: StableRep (no teacher, no local crops, no iBOT), + EMA, + iBOT, + multi-crop, and SimCLR (the
same image is the only positive). Deliberate difference: a batch can be taken in several pieces with
the gradient of the whole, without a second student pass, since all keys come from the teacher.
(Batch norms see a piece at a time: equality is exact with `norm: ln`.)
"""

from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from trainer import distributed, ibot, schedules
from trainer.contrastive import multi_positive_loss
from trainer.heads import ContrastiveHeadConfig, PrototypeHeadConfig
from trainer.network import Network, update_teacher
from trainer.photometric import PhotometricConfig, augment
from trainer.pieces import Piece, image_ids, split, step_masks
from trainer.stream import Batch
from trainer.vit import EncoderConfig
from transforms.core.config import Config
from transforms.core.seeding import derive

Precision = Literal["fp32", "bf16"]


class ObjectiveConfig(Config):
    """What is learned, and the settings of the losses."""

    teacher: bool = True
    """Keys and targets from an EMA of the student; without, keys are the student's own embeddings
    and there is no predictor (StableRep, SimCLR)."""
    positives: Literal["caption", "image"] = "caption"
    """Positives of an anchor: images of its caption, or crops of its image alone (SimCLR)."""
    temperature: float = 0.08
    """Of the contrastive loss (paper: 0.08; the authors' code: 0.1)."""
    global_weight: float = 1.0
    """Weight of the contrastive loss of global crops."""
    local_weight: float = 1.0
    """Weight of the contrastive loss of local crops."""
    ibot_weight: float = 1.0
    """Weight of iBOT; 0 leaves it and its head out."""
    masked_images: float = 0.5
    """Share of a batch's global crops that iBOT masks (paper: 0.5)."""
    masked_patches: float = 0.5
    """Share of a masked crop's patches that are hidden (paper: 0.5)."""
    student_temperature: float = 0.1
    """Of iBOT's student."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """Of iBOT's teacher: first and last."""
    teacher_temperature_steps: int = 4000
    """Steps over which the teacher's temperature changes, linearly."""
    sinkhorn_iterations: int = 3
    """Of Sinkhorn-Knopp (paper: 3)."""
    contrastive_head: ContrastiveHeadConfig = ContrastiveHeadConfig()
    prototype_head: PrototypeHeadConfig = PrototypeHeadConfig()
    contrastive_chunk: int | None = None
    """Anchors at a time in the contrastive loss; null takes a piece's anchors at once."""
    ibot_chunk: int | None = 2048
    """Masked tokens at a time in iBOT; null takes a piece's tokens at once."""

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.ibot_weight and not self.teacher:
            raise ValueError("ibot_weight is not 0, but iBOT needs teacher=true")
        for name in ("temperature", "student_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected more than 0")
        return self


def build_networks(
    model: EncoderConfig, objective: ObjectiveConfig, seed: int
) -> tuple[Network, Network | None]:
    """Student and teacher (None without one), which starts as the student's copy."""
    prototype_head = objective.prototype_head if objective.ibot_weight else None
    head = objective.contrastive_head
    student = Network(
        model,
        head,
        prototype_head,
        predictor=objective.teacher,
        drop_path=model.drop_path,
        seed=seed,
    )
    if not objective.teacher:
        return student, None
    teacher = Network(model, head, prototype_head, predictor=False, drop_path=0.0, seed=seed)
    teacher.requires_grad_(False)
    update_teacher(teacher, student, momentum=0.0)
    return student, teacher


class Objective:
    """Losses and gradients of a step.

    Args:
        config: The losses' settings.
        model: The encoder's, for normalisation.
        photometric: The settings of the draws.
        student: Trained.
        teacher: None without one.
        images_per_caption: M.
        captions_per_batch: Over all ranks.
        accumulation: Pieces that a rank's captions are taken in; 1 without a teacher.
        precision: "bf16" runs the networks under autocast; losses are in float32 always.
        seed: Of the training.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        model: EncoderConfig,
        photometric: PhotometricConfig,
        student: Network,
        teacher: Network | None,
        *,
        images_per_caption: int,
        captions_per_batch: int,
        accumulation: int,
        precision: Precision,
        seed: int,
    ) -> None:
        assert teacher is not None or accumulation == 1, "own keys need the whole batch at once"
        self.config = config
        self.model = model
        self.photometric = photometric
        self.student = student
        self.teacher = teacher
        self.images_per_caption = images_per_caption
        self.captions_per_batch = captions_per_batch
        self.accumulation = accumulation
        self.precision = precision
        self.seed = seed
        parameter = next(student.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    def backward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Add the gradient of this rank's share of the loss to the student's parameters.

        The mean of these gradients over the ranks is the batch's, and so is that of the terms.

        Args:
            batch: This rank's captions of the step, on the CPU.
            step: Finished optimiser steps.

        Returns:
            "loss" and its unweighted terms "global", "local" and "ibot", detached scalars.
        """
        torch.manual_seed(derive(self.seed, "drop path", step, distributed.rank()))
        pieces = self._pieces(batch, step)
        key_ids = distributed.gather(torch.cat([piece.global_ids for piece in pieces]))
        keys, targets = self._teach(pieces, step)
        totals: dict[str, Tensor] = {}
        for piece in pieces:
            terms = self._terms(piece, keys, key_ids, targets)
            terms["loss"] = (
                self.config.global_weight * terms["global"]
                + self.config.local_weight * terms.get("local", 0.0)
                + self.config.ibot_weight * terms.get("ibot", 0.0)
            )
            terms["loss"].backward()
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.detach()
        return totals

    def _terms(
        self,
        piece: Piece,
        keys: Tensor | None,
        key_ids: Tensor,
        targets: ibot.TeacherTargets | None,
    ) -> dict[str, Tensor]:
        """A piece's part of each mean over the rank's anchors and masked images."""
        embeddings, features = self._run(self.student, piece.global_images, piece.mask, hide=True)
        if keys is None:
            keys = distributed.gather(embeddings)
        own_key = torch.arange(len(embeddings), device=self.device) + piece.first_key
        terms = {
            "global": piece.share
            * self._contrast(embeddings, piece.global_ids, keys, key_ids, exclude=own_key)
        }
        if len(piece.local_images):
            embeddings, _ = self._run(self.student, piece.local_images, None)
            terms["local"] = piece.share * self._contrast(
                embeddings, piece.local_ids, keys, key_ids, exclude=None
            )
        if targets is not None:
            num_masked = round(self.config.masked_images * len(key_ids))
            ranks = distributed.world_size()
            assert self.student.prototype_head is not None
            assert features is not None and piece.mask is not None
            terms["ibot"] = ibot.chunked_ibot_loss(
                features,
                self.student.prototype_head.prototypes,
                targets.select(piece.tokens),
                ibot.token_weights(piece.mask.nonzero()[:, 0], num_masked / ranks),
                temperature=self.config.student_temperature,
                chunk_size=self.config.ibot_chunk,
            )
        return terms

    @torch.no_grad()
    def _teach(
        self, pieces: list[Piece], step: int
    ) -> tuple[Tensor | None, ibot.TeacherTargets | None]:
        """Keys of all ranks' global crops, and targets for this rank's masked tokens."""
        if self.teacher is None:
            return None, None
        outputs = [self._run(self.teacher, piece.global_images, piece.mask) for piece in pieces]
        keys = distributed.gather(torch.cat([embeddings for embeddings, _ in outputs]))
        features = [part for _, part in outputs if part is not None]
        if not features or self.teacher.prototype_head is None:
            return keys, None
        start, end = self.config.teacher_temperature
        targets = ibot.teacher_targets(
            torch.cat(features),
            self.teacher.prototype_head.prototypes,
            temperature=schedules.teacher_temperature(
                step, start=start, end=end, num_steps=self.config.teacher_temperature_steps
            ),
            iterations=self.config.sinkhorn_iterations,
            group=distributed.everyone(),
            chunk_size=self.config.ibot_chunk,
        )
        return keys, targets

    def _run(
        self, network: Network, images: Tensor, mask: Tensor | None, *, hide: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output: tuple[Tensor, Tensor | None] = network(images, mask, hide=hide)
        return output

    def _contrast(
        self, anchors: Tensor, ids: Tensor, keys: Tensor, key_ids: Tensor, exclude: Tensor | None
    ) -> Tensor:
        return multi_positive_loss(
            anchors,
            keys,
            ids,
            key_ids,
            temperature=self.config.temperature,
            exclude=exclude,
            chunk_size=self.config.contrastive_chunk,
        )

    def _pieces(self, batch: Batch, step: int) -> list[Piece]:
        masks = None
        if self.config.ibot_weight:
            masks = step_masks(
                batch,
                first_position=step * self.captions_per_batch,
                captions_per_batch=self.captions_per_batch,
                share=self.config.masked_images,
                seed=derive(self.seed, "masked images", step),
            )
        ids = image_ids(batch, self.config.positives, self.images_per_caption)
        return split(batch, ids, masks, self.accumulation, self._augment, self.device)

    def _augment(self, pixels: Tensor, draws: Tensor) -> Tensor:
        images = augment(
            pixels.to(self.device, non_blocking=True),
            draws,
            self.photometric,
            mean=self.model.mean,
            std=self.model.std,
        )
        return images.to(self.dtype)
