"""SynCLR's objective: contrastive loss on global and local crops, and iBOT, with an EMA teacher.

Source: paper section 3.3. StableRep, SimCLR and the steps between are settings of it (see
`trainer.objectives.base`). Deliberate difference: a batch can be taken in several pieces with
the gradient of the whole, without a second student pass, since all keys come from the teacher.
(Batch norms see a piece at a time: equality is exact with `norm: ln`.)
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from trainer import distributed
from trainer.data.batch import Batch
from trainer.losses import ibot, schedules
from trainer.losses.contrastive import multi_positive_loss
from trainer.models.student_teacher import Network, Outputs
from trainer.models.vit import EncoderConfig
from trainer.objectives.base import Objective, ObjectiveConfig, gather_keys
from trainer.objectives.collapse import feature_signs, target_signs
from trainer.objectives.micro_batch import Piece, StepMasks, step_masks
from transforms.core.seeding import derive


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
    values = student.state_dict()
    teacher.load_state_dict({name: values[name] for name in teacher.state_dict()})
    return student, teacher


class SynCLR(Objective):
    """Terms "global", "local" and "ibot", those that are asked for."""

    def _losses(self, batch: Batch, step: int) -> list[Callable[[], dict[str, Tensor]]]:
        pieces = self._pieces(batch, self._masks(batch, step))
        key_ids = distributed.gather(torch.cat([piece.global_ids for piece in pieces]))
        keys, targets = self._teach(pieces, step)
        return [partial(self._terms, piece, keys, key_ids, targets) for piece in pieces]

    def _terms(
        self,
        piece: Piece,
        keys: Tensor | None,
        key_ids: Tensor,
        targets: ibot.TeacherTargets | None,
    ) -> dict[str, Tensor]:
        """A piece's part of each mean over the rank's anchors and masked images."""
        masked = piece.masked
        output: Outputs = self._run(
            self.student,
            piece.global_images,
            piece.local_images,
            masked.mask if masked else None,
            masked.patches if masked else None,
        )
        embeddings = output.embeddings
        if keys is None:
            keys = gather_keys(embeddings)
            self.signs = feature_signs(output.cls_tokens)
        own_key = torch.arange(len(embeddings), device=self.device) + piece.first_key
        terms = {
            "global": piece.share
            * self._contrast(embeddings, piece.global_ids, keys, key_ids, exclude=own_key)
        }
        loss = self.config.global_weight * terms["global"]
        if output.local_embeddings is not None:
            terms["local"] = piece.share * self._contrast(
                output.local_embeddings, piece.local_ids, keys, key_ids, exclude=None
            )
            loss = loss + self.config.local_weight * terms["local"]
        if masked is not None:
            assert targets is not None
            assert output.features is not None and output.prototypes is not None
            terms["ibot"] = ibot.chunked_ibot_loss(
                output.features,
                output.prototypes,
                targets.select(masked.among),
                masked.weights,
                temperature=self.config.student_temperature,
                chunk_size=self.config.ibot_chunk,
                compiled=self.settings.compiled,
            )
            loss = loss + self.config.ibot_weight * terms["ibot"]
        return {"loss": loss, **terms}

    @torch.no_grad()
    def _teach(
        self, pieces: list[Piece], step: int
    ) -> tuple[Tensor | None, ibot.TeacherTargets | None]:
        """Keys of all ranks' global crops, and targets for this rank's masked tokens."""
        if self.teacher is None:
            return None, None
        outputs: list[Outputs] = [
            self._run(
                self.teacher,
                piece.global_images,
                None,
                None,
                piece.masked.patches if piece.masked else None,
            )
            for piece in pieces
        ]
        keys = distributed.gather(torch.cat([output.embeddings for output in outputs]))
        self.signs = feature_signs(torch.cat([output.cls_tokens for output in outputs]))
        features = [output.features for output in outputs if output.features is not None]
        prototypes = outputs[0].prototypes
        if prototypes is None:
            return keys, None
        start, end = self.config.teacher_temperature
        targets = ibot.teacher_targets(
            torch.cat(features),
            prototypes,
            temperature=schedules.teacher_temperature(
                step, start=start, end=end, num_steps=self.config.teacher_temperature_steps
            ),
            iterations=self.config.sinkhorn_iterations,
            group=distributed.world_group(),
            chunk_size=self.config.ibot_chunk,
            compiled=self.settings.compiled,
        )
        self.signs |= target_signs(targets)
        return keys, targets

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
            compiled=self.settings.compiled,
        )

    def _masks(self, batch: Batch, step: int) -> StepMasks | None:
        if not self.config.ibot_weight:
            return None
        captions = self.settings.captions_per_batch
        return step_masks(
            batch,
            first_position=step * captions,
            captions_per_batch=captions,
            share=self.config.masked_images,
            seed=derive(self.settings.seed, "masked images", step),
        )
