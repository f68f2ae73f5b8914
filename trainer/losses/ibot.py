"""iBOT: for patches hidden from it, the student predicts the teacher's prototypes.

Source: iBOT with DINOv2's Sinkhorn-Knopp targets, as the paper uses it (section 3.3). Every masked
image has the same weight. `trainer.data.masking` draws the masks.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from trainer.losses import fused
from trainer.losses.chunked import sum_in_chunks
from trainer.losses.sinkhorn import prototype_potentials


def ibot_loss(
    student: Tensor,
    targets: Tensor,
    image_ids: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Return the mean over masked images of the mean cross-entropy over their masked tokens.

    Args:
        student: [T, K], logits of the masked tokens.
        targets: [T, K], rows sum to 1.
        image_ids: int64 [T], the image that a token belongs to, in any order.
        temperature: Divides the student's logits (authors' code: 0.1).

    Returns:
        A scalar, 0 without tokens. Computed in at least float32.
    """
    weights = token_weights(image_ids)
    dtype = torch.promote_types(student.dtype, torch.float32)
    log_probability = (student.to(dtype) / temperature).log_softmax(dim=1)
    return -(weights.to(dtype) * (targets * log_probability).sum(dim=1)).sum()


def token_weights(image_ids: Tensor, num_images: float | None = None) -> Tensor:
    """Return weights [T]: their weighted sum over tokens is the mean over images of token means.

    Args:
        image_ids: int64 [T]; all tokens of an image must be in one call.
        num_images: Number of masked images to average over, if other ranks or micro-batches have
            some of them; None counts the images in `image_ids`.
    """
    _, image, num_tokens = image_ids.unique(return_inverse=True, return_counts=True)
    if num_images is None:
        num_images = len(num_tokens)
    return 1.0 / (num_tokens[image].double() * max(num_images, 1))


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's targets for masked tokens, in factors: targets are computed by chunk."""

    features: Tensor
    """[T, bottleneck], output of the teacher's prototype head."""
    prototypes: Tensor
    """[K, bottleneck], prototypes of the teacher."""
    potentials: Tensor
    """[K], from Sinkhorn-Knopp over all tokens of the batch."""
    temperature: float

    def select(self, tokens: slice) -> "TeacherTargets":
        """Return the targets of some of the tokens; they stay balanced over all tokens."""
        return dataclasses.replace(self, features=self.features[tokens])

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Return the logarithms of the targets [T, K] up to a constant per row; for few tokens."""
        with torch.autocast(self.features.device.type, enabled=False):
            scaled = self.features / self.temperature
            return functional.linear(scaled, self.prototypes, -self.potentials)

    @torch.no_grad()
    def dense(self) -> Tensor:
        """Return the targets [T, K]; for few tokens."""
        return self.logits().softmax(dim=1)


@torch.no_grad()
def teacher_targets(
    features: Tensor,
    prototypes: Tensor,
    *,
    temperature: float,
    iterations: int = 3,
    group: dist.ProcessGroup | None = None,
    chunk_size: int | None = None,
    compiled: bool = False,
) -> TeacherTargets:
    """Run Sinkhorn-Knopp over bottleneck features with [chunk_size, K] logits at a time.

    Args:
        features: [T, bottleneck] of this rank's masked tokens.
        prototypes: [K, bottleneck], prototypes of the teacher, in at least float32.
        temperature: Temperature of the teacher.
        iterations: Iterations of Sinkhorn-Knopp.
        group: Ranks whose tokens are balanced together; all of them must call, also with T = 0.
        chunk_size: Tokens at a time; None takes all at once.
        compiled: Compile all but the matrix products.
    """
    zeros = prototypes.new_zeros(len(prototypes))
    start = TeacherTargets(features.to(prototypes.dtype), prototypes, zeros, temperature)

    def shifted_logits(potentials: Tensor) -> Iterator[Tensor]:
        for chunk in start.features.split(chunk_size or max(len(features), 1)):
            yield dataclasses.replace(start, features=chunk, potentials=potentials).logits()

    potentials = prototype_potentials(
        shifted_logits, zeros, iterations=iterations, group=group, compiled=compiled
    )
    return dataclasses.replace(start, potentials=potentials)


def chunked_ibot_loss(
    features: Tensor,
    prototypes: Tensor,
    targets: TeacherTargets,
    weights: Tensor,
    *,
    temperature: float,
    chunk_size: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """Return `ibot_loss` from bottleneck features, with [chunk_size, K] logits at a time.

    Args:
        features: [T, bottleneck], output of the student's prototype head.
        prototypes: [K, bottleneck], prototypes of the student, in at least float32.
        targets: Targets of the same tokens.
        weights: [T], from `token_weights`.
        temperature: Temperature of the student.
        chunk_size: Tokens at a time; None takes all at once.
        compiled: Compile all but the matrix products.
    """

    def losses(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        chunk = (logits, targets.select(rows).logits())
        return fused.run(_cross_entropy, chunk, compiled=compiled)

    dtype = prototypes.dtype
    scaled = features.to(dtype) / temperature
    return sum_in_chunks(losses, scaled, prototypes, weights.to(dtype), chunk_size)


def _cross_entropy(logits: Tensor, target_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses [t] of tokens and their gradients with respect to the logits [t, K]."""
    log_probability = logits.log_softmax(dim=1)
    targets = target_logits.softmax(dim=1)
    values = -(targets * log_probability).sum(dim=1)
    return values, log_probability.exp_().sub_(targets)
