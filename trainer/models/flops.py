"""Floating-point operations of a forward pass through the networks, counted from their shapes.

Only matrix products count (two operations per multiply-add). Norms, softmax and other elementwise
work are left out, as is usual.
"""

from trainer.models.heads import ContrastiveHeadConfig, PrototypeHeadConfig
from trainer.models.vit import EncoderConfig

FORWARD, BACKWARD = 1, 2
"""Cost of a pass in forward passes; what is computed again to save memory does not count."""


def encoder_flops(model: EncoderConfig, size: int) -> float:
    """Return the operations for one image of `size` by `size` pixels."""
    patches = (size // model.patch_size) ** 2
    embedding = 2 * patches * model.width * 3 * model.patch_size**2
    blocks = model.depth * block_flops(patches + 1, model.width, model.mlp_ratio)
    return embedding + blocks


def block_flops(tokens: int, width: int, mlp_ratio: float = 4.0) -> float:
    """Return the operations of a transformer block for one sequence."""
    # Queries, keys, values and the output; the two layers of the MLP; scores and their use.
    return 2 * (tokens * width**2 * (4 + 2 * mlp_ratio) + 2 * tokens**2 * width)


def contrastive_head_flops(width: int, head: ContrastiveHeadConfig, *, predictor: bool) -> float:
    """Return the operations of projector and predictor for one image."""
    products = width * head.hidden + head.hidden * head.hidden + head.hidden * head.out
    if predictor:
        products += 2 * head.out * head.hidden
    return 2.0 * products


def prototype_head_flops(width: int, head: PrototypeHeadConfig) -> float:
    """Return the operations of iBOT's head for one masked token, prototypes included."""
    products = width * head.hidden + head.hidden * head.hidden + head.hidden * head.bottleneck
    return 2.0 * (products + head.bottleneck * head.num_prototypes)
