"""Dropout whose draws belong to the image: the number of ranks changes nothing.

Source of the places: AugReg (Steiner et al. 2021), which drops after the position embedding and
after each dense layer but those of query, key and value. Deliberate difference from torch's
dropout: an element is dropped by a hash of the image's key, the layer and the element's number. So
an image loses the same elements on any rank, in any micro-batch and when a block is computed again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Sets elements to zero and scales the others so that the mean is unchanged.

    `set_keys` must be called before each forward pass in training mode.

    Args:
        rate: Share of the elements that are dropped in training mode, less than 1.
        layer: Number of this layer; layers with another number drop other elements.
    """

    keys: Tensor
    layer: Tensor

    def __init__(self, rate: float, layer: int) -> None:
        super().__init__()
        self.rate = rate
        # Tensors, so that the compiler makes one program for all blocks.
        self.register_buffer("layer", torch.tensor(layer, dtype=torch.int32), persistent=False)
        self.register_buffer("keys", torch.empty(0, 2, dtype=torch.int32), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [N, T, D] with some elements dropped; N is the number of keys."""
        if not self.training:
            return tokens
        size = tokens[0].numel()
        numbers = torch.arange(size, dtype=torch.int32, device=tokens.device)
        first, second = self.keys[:, :1], self.keys[:, 1:]
        bits = _mixed(_mixed(numbers ^ first) ^ second ^ _mixed(self.layer))
        kept = (bits >= round(self.rate * 2**32) - 2**31).view(tokens.shape)
        return tokens * (kept.to(tokens.dtype) / (1.0 - self.rate))


def use_dropout(encoder: Any, rate: float) -> None:
    """Set the dropout of a timm `VisionTransformer` in place; see the module's docstring."""
    encoder.pos_drop = Dropout(rate, 0)
    for number, block in enumerate(encoder.blocks):
        block.attn.proj_drop = Dropout(rate, 3 * number + 1)
        block.mlp.drop1 = Dropout(rate, 3 * number + 2)
        block.mlp.drop2 = Dropout(rate, 3 * number + 3)


def set_keys(network: nn.Module, seeds: Sequence[int], device: torch.device) -> None:
    """Set what the next forward pass draws from.

    Args:
        network: Network with layers from `use_dropout`, perhaps wrapped.
        seeds: One seed of 64 bits for each image of the pass.
        device: Device of the network.
    """
    words = np.array(seeds, dtype=np.uint64).view(np.int32).reshape(-1, 2)
    keys = torch.from_numpy(words).to(device, non_blocking=True)
    for module in network.modules():
        if isinstance(module, Dropout):
            module.keys = keys


def _mixed(bits: Tensor) -> Tensor:
    """Return a hash of each int32, uniform over all of them: a bijection whose bits all depend."""
    bits = bits ^ ((bits >> 16) & 0xFFFF)
    bits = bits * 0x7FEB352D
    bits = bits ^ ((bits >> 15) & 0x1FFFF)
    bits = bits * (0x846CA68B - 2**32)
    return bits ^ ((bits >> 16) & 0xFFFF)
