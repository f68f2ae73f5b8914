"""SynCLR's objective: contrastive loss on global and local crops, and iBOT, with an EMA teacher.

Source: paper section 3.3 and tables 4 and 5. The other contrastive objectives that the paper
compares are settings of this one:

    SynCLR              the defaults
    + EMA + multi-crop  ibot_weight 0
    + EMA + iBOT        crops.num_local 0
    + EMA               ibot_weight 0, crops.num_local 0
    StableRep           teacher false, ibot_weight 0, crops.num_local 0
    SimCLR              like StableRep, with positives image, crops.num_global 2

Deliberate difference: a batch can be taken in several micro-batches with the gradient of the whole
batch and without a second student pass, since all keys come from the teacher. (Batch norms see one
micro-batch at a time; the gradient is exact with layer norms.)
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from trainer import distributed
from trainer.data.batch import Batch
from trainer.losses import ibot, schedules
from trainer.losses.contrastive import multi_positive_loss
from trainer.models import flops
from trainer.models.flops import BACKWARD, FORWARD
from trainer.models.heads import ContrastiveHeadConfig, PrototypeHeadConfig
from trainer.models.student_teacher import Network, Outputs
from trainer.objectives.base import Objective, ObjectiveConfig, Terms, gather_keys
from trainer.objectives.collapse import feature_metrics, target_metrics
from trainer.objectives.micro_batch import MicroBatch, Positives, StepMasks, step_masks
from transforms.core.config import Probability, no_fingerprint
from transforms.core.seeding import derive

if TYPE_CHECKING:
    from trainer.config import TrainConfig


class ContrastiveConfig(ObjectiveConfig):
    """Images of a caption are compared with each other: SynCLR and its relatives."""

    kind: Literal["contrastive"] = "contrastive"
    """`contrastive`: the images of a caption are compared with each other."""
    teacher: bool = True
    """Keys and targets come from an EMA of the student. Without a teacher, keys are the student's
    own embeddings, and there is no predictor (StableRep, SimCLR)."""
    positives: Positives = "caption"
    """Positives of an anchor: images of its caption (paper), or crops of its image alone
    (SimCLR)."""
    temperature: PositiveFloat = 0.08
    """Temperature of the contrastive loss (paper: 0.08; authors' code: 0.1)."""
    global_weight: NonNegativeFloat = 1.0
    """Weight of the contrastive loss of global crops (paper: 1)."""
    local_weight: NonNegativeFloat = 1.0
    """Weight of the contrastive loss of local crops (paper: 1)."""
    ibot_weight: NonNegativeFloat = 1.0
    """Weight of iBOT (paper: 1); 0 leaves out iBOT and its head."""
    masked_images: Probability = 0.5
    """Share of a batch's global crops that iBOT masks (paper: 0.5)."""
    masked_patches: Probability = 0.5
    """Share of a masked crop's patches that are hidden (paper: 0.5)."""
    student_temperature: PositiveFloat = 0.1
    """Temperature of the student's prototype logits in iBOT (authors' code: 0.1)."""
    teacher_temperature: tuple[PositiveFloat, PositiveFloat] = (0.04, 0.07)
    """Temperature of the teacher's prototype logits in iBOT: first and last (paper: 0.04, 0.07)."""
    teacher_temperature_steps: NonNegativeInt = 4000
    """Steps over which the teacher's temperature changes linearly (paper: 4,000)."""
    sinkhorn_iterations: NonNegativeInt = 3
    """Iterations of Sinkhorn-Knopp over iBOT's targets (paper: 3); with 0 the targets are a
    softmax."""
    contrastive_head: ContrastiveHeadConfig = ContrastiveHeadConfig()
    prototype_head: PrototypeHeadConfig = PrototypeHeadConfig()
    contrastive_chunk: PositiveInt | None = no_fingerprint(None)
    """Anchors at a time in the contrastive loss; null takes all anchors of a micro-batch at
    once."""
    ibot_chunk: PositiveInt | None = no_fingerprint(2048)
    """Masked tokens at a time in iBOT; null takes all tokens of a micro-batch at once."""

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.ibot_weight and not self.teacher:
            raise ValueError("iBOT needs a teacher: without one, set objective.ibot_weight=0")
        if self.ibot_weight and not (self.masked_images and self.masked_patches):
            raise ValueError(
                "masked_images or masked_patches is 0, so that iBOT has nothing to learn from: "
                "expected ibot_weight=0, which leaves it out"
            )
        return self


class SynCLR(Objective[ContrastiveConfig]):
    """Terms "global", "local" and "ibot", those that the config asks for."""

    settings_class = ContrastiveConfig
    takes_local_crops = True

    @classmethod
    def build_networks(cls, config: "TrainConfig") -> tuple[Network, Network | None]:
        """Return student and teacher (None without one), which starts as the student's copy."""
        settings, model, seed = cls.settings_of(config), config.model, config.seed
        prototype_head = settings.prototype_head if settings.ibot_weight else None
        head = settings.contrastive_head
        student = Network(
            model,
            head,
            prototype_head,
            predictor=settings.teacher,
            drop_path=model.drop_path,
            seed=seed,
        )
        if not settings.teacher:
            return student, None
        teacher = Network(model, head, prototype_head, predictor=False, drop_path=0.0, seed=seed)
        teacher.requires_grad_(False)
        values = student.state_dict()
        teacher.load_state_dict({name: values[name] for name in teacher.state_dict()})
        return student, teacher

    @classmethod
    def patch_share(cls, config: "TrainConfig") -> float:
        """Return the share of a masked crop's patches that are hidden."""
        return cls.settings_of(config).masked_patches

    @classmethod
    def flops_beyond_student(cls, config: "TrainConfig") -> float:
        """Return the operations of heads, teacher, iBOT and the comparison with the batch."""
        settings, model, crops = cls.settings_of(config), config.model, config.crops
        head, width, learning = settings.contrastive_head, model.width, FORWARD + BACKWARD
        anchors = crops.num_global + crops.num_local
        embed = flops.contrastive_head_flops(width, head, predictor=settings.teacher)
        total = learning * anchors * embed
        passes = learning
        if settings.teacher:
            teacher = flops.encoder_flops(model, model.image_size)
            teacher += flops.contrastive_head_flops(width, head, predictor=False)
            total += FORWARD * crops.num_global * teacher
            passes += FORWARD
        if settings.ibot_weight:
            masked = settings.masked_images * settings.masked_patches * model.num_patches
            tokens = crops.num_global * masked
            total += passes * tokens * flops.prototype_head_flops(width, settings.prototype_head)
        # Every crop is compared with every global crop of the batch; keys take no gradient.
        batch = config.captions_per_batch * config.images_per_caption * crops.num_global
        return total + (FORWARD + 1) * anchors * 2 * batch * head.out

    @classmethod
    def check(cls, config: "TrainConfig") -> None:
        """Check that there is something to learn, and accumulation."""
        settings = cls.settings_of(config)
        if config.accumulation > 1 and not settings.teacher:
            raise ValueError(
                f"accumulation is {config.accumulation}: expected 1, or objective.teacher=true "
                "(without a teacher, keys need a gradient, so the whole batch is taken at once)"
            )
        local_weight = settings.local_weight if config.crops.num_local else 0.0
        if not any((settings.global_weight, local_weight, settings.ibot_weight)):
            raise ValueError(
                "there is nothing to learn: expected objective.global_weight, local_weight (with "
                "local crops) or ibot_weight above 0"
            )

    @classmethod
    def warnings(cls, config: "TrainConfig") -> list[str]:
        """Return warnings about missing positives and about batch norms."""
        settings, found = cls.settings_of(config), []
        same_caption = settings.positives == "caption"
        if config.crops.num_global * (config.images_per_caption if same_caption else 1) == 1:
            others = "images_per_caption is 1" if same_caption else "objective.positives is image"
            found.append(f"No global crop has a positive: crops.num_global is 1, and {others}.")
        if config.accumulation > 1 and settings.contrastive_head.norm == "bn":
            found.append(
                "Batch norms see one micro-batch at a time; objective.contrastive_head.norm=ln "
                "gives the gradient of the whole batch."
            )
        head = settings.contrastive_head
        if head.statistics == "apart" and (head.norm != "bn" or not config.crops.num_local):
            why = "crops.num_local is 0" if head.norm == "bn" else f"norm is {head.norm}"
            found.append(f"objective.contrastive_head.statistics=apart has no effect: {why}.")
        return found

    def losses(self, batch: Batch, step: int) -> list[Callable[[], Terms]]:
        """Return one function per micro-batch; the teacher sees the whole batch before."""
        micro_batches = self.micro_batches(batch, self.settings.positives, self._masks(batch, step))
        key_ids = distributed.gather(torch.cat([part.global_ids for part in micro_batches]))
        keys, targets = self._teach(micro_batches, step)
        return [partial(self._terms, part, keys, key_ids, targets) for part in micro_batches]

    def _terms(
        self,
        micro_batch: MicroBatch,
        keys: Tensor | None,
        key_ids: Tensor,
        targets: ibot.TeacherTargets | None,
    ) -> Terms:
        """Return a micro-batch's part of each mean over the rank's anchors and masked images."""
        masked, share = micro_batch.masked, micro_batch.share
        output: Outputs = self.run(
            self.student,
            micro_batch.global_images,
            micro_batch.local_images,
            masked.mask if masked else None,
            masked.patches if masked else None,
            micro_batch.global_seeds,
            micro_batch.local_seeds,
        )
        embeddings = output.embeddings
        if keys is None:
            keys = gather_keys(embeddings)
            self.collapse_metrics = feature_metrics(output.cls_tokens)
        own_key = torch.arange(len(embeddings), device=self.device) + micro_batch.first_key
        terms = {
            "global": share
            * self._contrast(embeddings, micro_batch.global_ids, keys, key_ids, exclude=own_key)
        }
        loss = self.settings.global_weight * terms["global"]
        if output.local_embeddings is not None:
            terms["local"] = share * self._contrast(
                output.local_embeddings, micro_batch.local_ids, keys, key_ids, exclude=None
            )
            loss = loss + self.settings.local_weight * terms["local"]
        if masked is not None:
            assert targets is not None
            assert output.features is not None and output.prototypes is not None
            terms["ibot"] = ibot.chunked_ibot_loss(
                output.features,
                output.prototypes,
                targets.select(masked.rows),
                masked.weights,
                temperature=self.settings.student_temperature,
                chunk_size=self.settings.ibot_chunk,
                compiled=self.config.execution.compile,
            )
            loss = loss + self.settings.ibot_weight * terms["ibot"]
        return {"loss": loss, **terms}

    @torch.no_grad()
    def _teach(
        self, micro_batches: list[MicroBatch], step: int
    ) -> tuple[Tensor | None, ibot.TeacherTargets | None]:
        """Return the keys of all ranks' global crops, and targets for this rank's masked tokens."""
        if self.teacher is None:
            return None, None
        outputs: list[Outputs] = [
            self.run(
                self.teacher,
                part.global_images,
                None,
                None,
                part.masked.patches if part.masked else None,
            )
            for part in micro_batches
        ]
        keys = distributed.gather(torch.cat([output.embeddings for output in outputs]))
        cls_tokens = torch.cat([output.cls_tokens for output in outputs])
        self.collapse_metrics = feature_metrics(cls_tokens)
        features = [output.features for output in outputs if output.features is not None]
        prototypes = outputs[0].prototypes
        if prototypes is None:
            return keys, None
        start, end = self.settings.teacher_temperature
        targets = ibot.teacher_targets(
            torch.cat(features),
            prototypes,
            temperature=schedules.teacher_temperature(
                step, start=start, end=end, num_steps=self.settings.teacher_temperature_steps
            ),
            iterations=self.settings.sinkhorn_iterations,
            group=distributed.world_group(),
            chunk_size=self.settings.ibot_chunk,
            compiled=self.config.execution.compile,
        )
        self.collapse_metrics |= target_metrics(targets)
        return keys, targets

    def _contrast(
        self, anchors: Tensor, ids: Tensor, keys: Tensor, key_ids: Tensor, exclude: Tensor | None
    ) -> Tensor:
        return multi_positive_loss(
            anchors,
            keys,
            ids,
            key_ids,
            temperature=self.settings.temperature,
            exclude=exclude,
            chunk_size=self.settings.contrastive_chunk,
            compiled=self.config.execution.compile,
        )

    def _masks(self, batch: Batch, step: int) -> StepMasks | None:
        if not self.settings.ibot_weight:
            return None
        captions = self.config.captions_per_batch
        return step_masks(
            batch,
            first_position=step * captions,
            captions_per_batch=captions,
            share=self.settings.masked_images,
            seed=derive(self.config.seed, "masked images", step),
        )
