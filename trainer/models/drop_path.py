"""Stochastic depth: a residual branch is left out at random, separately for each image.

Source: paper appendix (drop path 0.1 for ViT-B, 0.4 for ViT-L), in timm's definition: the rate
grows linearly from 0 in the first block to its full value in the last. Deliberate difference: the
rate is a tensor on the device, so the compiler makes one program for all blocks instead of one for
each rate.
"""

from typing import Any

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Sets the branch of some images to zero and scales the others so that the mean is unchanged.

    Args:
        rate: Share of the images whose branch is left out, in training mode.
    """

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, branch: Tensor) -> Tensor:
        """Return the output of a branch [N, tokens, D], zero for the images that are left out."""
        if not self.training:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) < self.keep
        return branch * (kept.to(branch.dtype) / self.keep)


def use_drop_path(encoder: Any, rate: float) -> None:
    """Set the drop path of each block of a timm `VisionTransformer`, in place.

    The first block has the module, too, with rate 0, so that all blocks are compiled alike.

    Args:
        encoder: A model made without drop path.
        rate: Rate of the last block.
    """
    blocks = encoder.blocks
    for block, own_rate in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        block.drop_path1 = DropPath(own_rate)
        block.drop_path2 = DropPath(own_rate)
