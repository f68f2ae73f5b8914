"""iBOT: the student says, for patches it cannot see, which prototypes the teacher sees there.

Source: iBOT with DINOv2's Sinkhorn-Knopp targets, as the paper uses it (section 3.3). Half of
a batch's images are masked, chosen over the whole batch and not by slot, so that the choice does
not depend on the number of ranks. Every masked image weighs the same.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from trainer.chunked import sum_in_chunks
from trainer.sinkhorn import prototype_potentials, targets_of


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
        temperature: Divides the student's logits (paper: 0.1).

    Returns:
        A scalar, 0 without tokens. Computed in at least float32.
    """
    weights = token_weights(image_ids)
    return _weighted_cross_entropy(student, targets, weights, temperature)


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
    def dense(self) -> Tensor:
        """The targets themselves [T, K]; for few tokens at a time."""
        logits = _logits(self.features, self.prototypes)
        return targets_of(logits, self.potentials, temperature=self.temperature)


@torch.no_grad()
def teacher_targets(
    features: Tensor,
    prototypes: Tensor,
    *,
    temperature: float,
    iterations: int = 3,
    group: dist.ProcessGroup | None = None,
    chunk_size: int | None = None,
) -> TeacherTargets:
    """Sinkhorn-Knopp over bottleneck features, holding [chunk_size, K] logits at a time.

    Args:
        features: [T, bottleneck] of this rank's masked tokens.
        prototypes: [K, bottleneck], the teacher's.
        temperature: The teacher's.
        iterations: Of Sinkhorn-Knopp.
        group: Ranks that are balanced together; all of them must call, also with T = 0.
        chunk_size: Tokens at a time; None takes all at once.
    """

    def logit_chunks() -> Iterator[Tensor]:
        for chunk in features.split(chunk_size or max(len(features), 1)):
            yield _logits(chunk, prototypes)

    potentials = prototype_potentials(
        logit_chunks, temperature=temperature, iterations=iterations, group=group
    )
    return TeacherTargets(features, prototypes, potentials, temperature)


def chunked_ibot_loss(
    features: Tensor,
    prototypes: Tensor,
    targets: TeacherTargets,
    weights: Tensor,
    *,
    temperature: float,
    chunk_size: int | None = None,
) -> Tensor:
    """As `ibot_loss`, from bottleneck features; no [T, K] matrix outlives its chunk.

    Args:
        features: [T, bottleneck] of the student's prototype head.
        prototypes: [K, bottleneck], the student's.
        targets: Of the same tokens.
        weights: [T], from `token_weights`.
        temperature: The student's.
        chunk_size: Tokens at a time; None takes all at once.
    """

    def chunk_loss(chunk: Tensor, prototypes: Tensor, rows: slice) -> Tensor:
        wanted = targets.select(rows).dense()
        return _weighted_cross_entropy(
            _logits(chunk, prototypes), wanted, weights[rows], temperature
        )

    return sum_in_chunks(chunk_loss, features, prototypes, chunk_size)


def _logits(features: Tensor, prototypes: Tensor) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        return features.to(prototypes.dtype) @ prototypes.T


def _weighted_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_probability = (logits.to(dtype) / temperature).log_softmax(dim=1)
    return -(weights.to(dtype) * (targets * log_probability).sum(dim=1)).sum()


def choose_masked_images(num_images: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Which images of a batch are masked: exactly `round(share * num_images)` of them.

    Args:
        num_images: Images (global crops) of the whole batch, over all ranks and micro-batches.
        share: Of them that are masked (paper: 0.5).
        seed: Of this step.

    Returns:
        bool [num_images].
    """
    return _choose(num_images, share, np.random.default_rng(seed))


def draw_patch_mask(
    num_patches: int, share: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Patches of one image that are hidden: uniformly `round(share * num_patches)` of them."""
    return _choose(num_patches, share, generator)


def _choose(number: int, share: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    chosen = np.zeros(number, dtype=np.bool_)
    chosen[generator.permutation(number)[: round(share * number)]] = True
    return chosen
