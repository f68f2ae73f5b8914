"""Signs that the representations collapse, from what the teacher says in a step.

Without a teacher the student's own embeddings are looked at (the images', in CLIP); the supervised
objective has none, and a collapse shows in its loss.

A self-distilled encoder can find a shortcut: the same embedding for every image, or the same target
for every token. The losses look fine then, these numbers do not. (Not in the paper; DINO and iBOT
watch the entropy of their targets in the same spirit.)
"""

import torch
from torch import Tensor
from torch.nn import functional

from trainer.ibot import TeacherTargets

NUM_TOKENS = 256
"""Tokens that the signs of the targets are taken from; a glance is enough."""


@torch.no_grad()
def embedding_signs(keys: Tensor) -> dict[str, Tensor]:
    """Of the embeddings that anchors are compared with.

    Args:
        keys: [N, D], need not be normalised.

    Returns:
        "feature_std": the standard deviation of unit embeddings over the batch, averaged over their
        D numbers, times sqrt(D): about 1 when they point everywhere, 0 when they are all alike.
    """
    units = functional.normalize(keys.float(), dim=1)
    return {"feature_std": units.std(dim=0, correction=0).mean() * keys.shape[1] ** 0.5}


@torch.no_grad()
def target_signs(targets: TeacherTargets) -> dict[str, Tensor]:
    """Of iBOT's targets, on the first tokens.

    Returns:
        "target_entropy": the mean entropy of a token's target over that of the uniform one: 0 is
        one prototype each, 1 says nothing. "prototypes_used": the perplexity of the targets' mean,
        out of as many as there can be (prototypes or tokens): near 0, all tokens share a few.
        Both 0 where there is no token.
    """
    probabilities = targets.select(slice(NUM_TOKENS)).dense()  # [t, K]
    num_tokens, num_prototypes = probabilities.shape
    uniform = torch.tensor(float(num_prototypes)).log()
    entropy = _entropy(probabilities).mean() / uniform
    perplexity = _entropy(probabilities.mean(dim=0)).exp()
    return {
        "target_entropy": entropy.nan_to_num(0.0),
        "prototypes_used": perplexity.nan_to_num(0.0) / max(min(num_tokens, num_prototypes), 1),
    }


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(dim=-1)
