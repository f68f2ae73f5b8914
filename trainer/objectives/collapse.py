"""Signs that the representations collapse, from what the teacher says in a step.

Without a teacher they are the student's. A self-distilled encoder can find a shortcut: the same
token for every image, or the same target for every patch. The losses look fine then, these numbers
do not. (Not in the paper; SimSiam watches the standard deviation of its unit embeddings, DINO and
iBOT the entropy of their targets.) They are taken where nothing hides a collapse: before the
projector, whose last batch norm makes every batch look alike, and before Sinkhorn-Knopp, which
shares tokens out among all prototypes whatever they say.
"""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional

from trainer import distributed
from trainer.losses.ibot import TeacherTargets

NUM_TOKENS = 256
"""Patch tokens that a rank looks at; a glance is enough."""


@torch.no_grad()
def feature_signs(cls_tokens: Tensor) -> dict[str, Tensor]:
    """Of the encoder's view of the images of all ranks, which must call together.

    Args:
        cls_tokens: [N, D], this rank's, as the encoder gives them; N is the same on every rank.

    Returns:
        "feature_std": the standard deviation of unit tokens over the images, averaged over their D
        numbers, times sqrt(D): 1 when they point everywhere, 0 when they are all alike. It starts
        low, as an untrained encoder tells little apart (ViT-B/16: 0.3), and then must not fall.
    """
    units = functional.normalize(cls_tokens.double(), dim=1)  # Squares of small differences.
    moments = torch.stack([units.mean(dim=0), units.square().mean(dim=0)])
    mean, square = distributed.all_reduce(moments) / distributed.world_size()
    deviation = (square - mean.square()).clamp(min=0.0).sqrt()
    return {"feature_std": deviation.mean() * units.shape[1] ** 0.5}


@torch.no_grad()
def target_signs(targets: TeacherTargets) -> dict[str, Tensor]:
    """Of iBOT's targets, on tokens spread evenly over this rank's (the log has the ranks' mean).

    Returns:
        "target_entropy": the mean entropy of a token's target over that of the uniform one: 0 is
        one prototype each, 1 says nothing. "prototypes_used": how many prototypes are the nearest
        of a token, out of as many as there can be (tokens or prototypes): 1 when each token has its
        own, near 0 when all share a few. Both 0 where there is no token.
    """
    features = targets.features  # [T, bottleneck]
    num_tokens, num_prototypes = min(len(features), NUM_TOKENS), len(targets.prototypes)
    spread = torch.linspace(0, len(features) - 1, num_tokens, device=features.device).long()
    targets = dataclasses.replace(targets, features=features[spread])
    logits = targets.features @ targets.prototypes.T  # [t, K]
    # Counted without `unique`, which would wait for the device.
    used = logits.new_zeros(num_prototypes).index_fill(0, logits.argmax(dim=1), 1.0).sum()
    entropy = torch.special.entr(targets.dense()).sum(dim=1).mean() / math.log(num_prototypes)
    return {
        "target_entropy": entropy.nan_to_num(0.0),
        "prototypes_used": used / max(min(num_tokens, num_prototypes), 1),
    }
