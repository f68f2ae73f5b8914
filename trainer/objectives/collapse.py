"""Metrics that show a collapse of the representations, from the teacher's outputs in a step.

Without a teacher they are computed from the student's. A self-distilled encoder can find a
shortcut: the same token for every image, or the same target for every patch. The losses look fine
then, but these metrics do not. (Not in the paper; SimSiam watches the standard deviation of its
unit embeddings, DINO and iBOT the entropy of their targets.)

They are taken where nothing hides a collapse: before the projector, whose last batch norm makes
every batch look alike, and before Sinkhorn-Knopp, which spreads any tokens over all prototypes.
"""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional

from trainer import distributed
from trainer.losses.ibot import TeacherTargets

NUM_TOKENS = 256
"""Largest number of patch tokens per rank that the target metrics use."""


@torch.no_grad()
def feature_metrics(cls_tokens: Tensor) -> dict[str, Tensor]:
    """Return how different the encoder's outputs are over the images of all ranks.

    All ranks must call it together.

    Args:
        cls_tokens: [N, D], output of the encoder for this rank's images; N is the same on every
            rank.

    Returns:
        "feature_std": the standard deviation of unit tokens over the images, averaged over the D
        components, times sqrt(D): 1 if the tokens point everywhere, 0 if they are all alike. It
        starts low, since an untrained encoder hardly tells images apart (ViT-B/16: 0.3), and must
        not fall afterwards.
    """
    units = functional.normalize(cls_tokens.double(), dim=1)  # Squares of small differences.
    moments = torch.stack([units.mean(dim=0), units.square().mean(dim=0)])
    mean, square = distributed.all_reduce(moments) / distributed.world_size()
    deviation = (square - mean.square()).clamp(min=0.0).sqrt()
    return {"feature_std": deviation.mean() * units.shape[1] ** 0.5}


@torch.no_grad()
def target_metrics(targets: TeacherTargets) -> dict[str, Tensor]:
    """Return how specific and how varied iBOT's targets are.

    The tokens are spread evenly over this rank's; the log has the mean over the ranks.

    Returns:
        "target_entropy": the mean entropy of a token's target, divided by that of the uniform
        distribution: 0 if each token has a single prototype, 1 if the targets say nothing.
        "prototypes_used": the number of prototypes that are the nearest to a token, divided by the
        largest possible number (tokens or prototypes): 1 if each token has its own, near 0 if all
        tokens share a few. Both are 0 if there is no token.
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
