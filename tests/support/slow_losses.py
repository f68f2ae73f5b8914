"""Losses as their definitions state them: loops and dense matrices in float64."""

import math

import torch
from torch import Tensor


def slow_multi_positive_loss(
    anchors: Tensor, keys: Tensor, anchor_ids: Tensor, key_ids: Tensor, tau: float, exclude: Tensor
) -> float:
    """Return the multi-positive contrastive loss; arguments as in `multi_positive_loss`."""
    total = 0.0
    for a, anchor in enumerate(anchors):
        similarity, positive = [], []
        for k, key in enumerate(keys):
            if k == exclude[a]:
                continue
            cosine = float(anchor @ key) / float(anchor.norm() * key.norm())
            similarity.append(cosine / tau)
            positive.append(bool(anchor_ids[a] == key_ids[k]))
        if not any(positive):
            continue
        highest = max(similarity)
        log_total = highest + math.log(sum(math.exp(s - highest) for s in similarity))
        chosen = [s - log_total for s, p in zip(similarity, positive, strict=True) if p]
        total -= sum(chosen) / len(chosen)
    return total / len(anchors)


def slow_sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """Return targets [T, K]: columns and rows of a matrix of exponentials normalised in turn."""
    matrix = torch.exp(logits.double() / temperature)
    matrix = matrix / matrix.sum()
    num_tokens, num_prototypes = matrix.shape
    for _ in range(iterations):
        matrix = matrix / matrix.sum(dim=0, keepdim=True) / num_prototypes
        matrix = matrix / matrix.sum(dim=1, keepdim=True) / num_tokens
    return matrix * num_tokens
