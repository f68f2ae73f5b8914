"""iBOT: the student says, for patches it cannot see, which prototypes the teacher sees there.

Source: iBOT with DINOv2's Sinkhorn-Knopp targets, as the paper uses it (section 3.3). Half of
a batch's images are masked, chosen over the whole batch and not by slot, so that the choice does
not depend on the number of ranks. Every masked image weighs the same.
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
    """Mean over masked images of the mean cross-entropy over their masked tokens.

    Args:
        student: [T, K], logits of the masked tokens.
        targets: [T, K], rows sum to 1.
        image_ids: int64 [T], which image a token belongs to, in any order.
        temperature: Divides the student's logits (the authors' code: 0.1).

    Returns:
        A scalar, 0 without tokens. Computed in at least float32.
    """
    weights = token_weights(image_ids)
    dtype = torch.promote_types(student.dtype, torch.float32)
    log_probability = (student.to(dtype) / temperature).log_softmax(dim=1)
    return -(weights.to(dtype) * (targets * log_probability).sum(dim=1)).sum()


def token_weights(image_ids: Tensor, num_images: float | None = None) -> Tensor:
    """Weights [T] that make a sum over tokens the mean over images of the mean over their tokens.

    Args:
        image_ids: int64 [T], all tokens of an image together in one call.
        num_images: Masked images to average over, when more than these take part (other ranks,
            other micro-batches); None counts them here.
    """
    _, image, num_tokens = image_ids.unique(return_inverse=True, return_counts=True)
    if num_images is None:
        num_images = len(num_tokens)
    return 1.0 / (num_tokens[image].double() * max(num_images, 1))


@dataclass(frozen=True)
class TeacherTargets:
    """What the teacher says about masked tokens, kept small: targets are made chunk by chunk."""

    features: Tensor
    """[T, bottleneck] of the teacher's prototype head."""
    prototypes: Tensor
    """[K, bottleneck], the teacher's."""
    potentials: Tensor
    """[K], from Sinkhorn-Knopp over all tokens of the batch."""
    temperature: float

    def select(self, tokens: slice) -> "TeacherTargets":
        """The targets of some of the tokens, balanced over all of them."""
        return dataclasses.replace(self, features=self.features[tokens])

    @torch.no_grad()
    def logits(self) -> Tensor:
        """The logarithms of the targets [T, K] but for a constant in each row; for few tokens."""
        with torch.autocast(self.features.device.type, enabled=False):
            scaled = self.features / self.temperature
            return functional.linear(scaled, self.prototypes, -self.potentials)

    @torch.no_grad()
    def dense(self) -> Tensor:
        """The targets themselves [T, K]; for few tokens at a time."""
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
    """Sinkhorn-Knopp over bottleneck features, holding [chunk_size, K] logits at a time.

    Args:
        features: [T, bottleneck] of this rank's masked tokens.
        prototypes: [K, bottleneck], the teacher's, in at least float32.
        temperature: The teacher's.
        iterations: Of Sinkhorn-Knopp.
        group: Ranks that are balanced together; all of them must call, also with T = 0.
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
    """As `ibot_loss`, from bottleneck features; no [T, K] matrix outlives its chunk.

    Args:
        features: [T, bottleneck] of the student's prototype head.
        prototypes: [K, bottleneck], the student's, in at least float32.
        targets: Of the same tokens.
        weights: [T], from `token_weights`.
        temperature: The student's.
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
    """Of tokens: losses [t], and their gradients in the student's logits [t, K]."""
    log_probability = logits.log_softmax(dim=1)
    targets = target_logits.softmax(dim=1)
    values = -(targets * log_probability).sum(dim=1)
    return values, log_probability.exp_().sub_(targets)
