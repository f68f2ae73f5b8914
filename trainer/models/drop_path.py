"""Stochastic depth: a residual branch is left out at random, image by image.

Source: paper appendix (drop path 0.1 for ViT-B, 0.4 for ViT-L), in timm's definition: the rate
grows linearly from 0 in the first block to its full size in the last. Deliberate difference: the
rate is a tensor on the device, so that blocks are alike to a compiler, which would otherwise make a
program for each rate.
"""

from typing import Any

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Zero for some images, and for the others so much larger that the mean stays.

    Args:
        rate: Share of the images whose branch is left out, in training.
    """

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, branch: Tensor) -> Tensor:
        """Of a branch's output [N, tokens, D]."""
        if not self.training:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) < self.keep
        return branch * (kept.to(branch.dtype) / self.keep)


def use_drop_path(encoder: Any, rate: float) -> None:
    """Give each block of a timm `VisionTransformer` its drop path, in place.

    The first block's rate is 0, but it has the module, too: it is to be like the others.

    Args:
        encoder: Made without drop path.
        rate: Of the last block.
    """
    blocks = encoder.blocks
    for block, own_rate in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        block.drop_path1 = DropPath(own_rate)
        block.drop_path2 = DropPath(own_rate)
