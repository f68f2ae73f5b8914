"""Stochastic depth: a residual branch is left out at random, separately for each image.

Source: paper appendix (drop path 0.1 for ViT-B, 0.4 for ViT-L), in timm's definition: the rate
grows linearly from 0 in the first block to its full value in the last. Deliberate difference: a
draw is a hash of the image's seed and of the branch's number, and not the next number of a
generator. So it depends neither on the other images of a batch, nor on ranks, micro-batches and
devices, and a block that is computed again gets the same draws.
"""

import torch
from torch import Tensor, nn

from transforms.core.seeding import derive

LOW_32_BITS = 0xFFFF_FFFF
# Odd, and below 2**31: products with 32 bits fit into int64.
FIRST_FACTOR, SECOND_FACTOR = 0x7FEB_352D, 0x45D_9F3B


def image_seeds(numbers: Tensor, *key: int | str) -> Tensor:
    """Return the seed of each image's drop path, int64 of 32 bits, same shape.

    Args:
        numbers: int64, the number of each image (crop) in the whole training. Numbers with the same
            upper 32 bits have different seeds.
        key: Purpose of the seeds, see `derive`; for instance the seed of the training and a name.
    """
    word = derive(*key)
    low = _mix((numbers ^ word) & LOW_32_BITS)
    return _mix(low ^ ((numbers ^ word) >> 32 & LOW_32_BITS))


class DropPath(nn.Module):
    """Draws the branches to leave out, for all blocks of an encoder at once.

    Each block has two branches. The last block leaves its branches out with the full rate.

    Args:
        depth: Number of blocks.
        rate: Share of the images whose branch is left out in the last block.
    """

    keep: Tensor
    branches: Tensor

    def __init__(self, depth: int, rate: float) -> None:
        super().__init__()
        keep = 1.0 - torch.linspace(0, rate, depth).view(depth, 1, 1)
        numbers = torch.arange(1, 2 * depth + 1).view(depth, 2, 1)
        self.register_buffer("keep", keep, persistent=False)
        self.register_buffer("branches", _mix(numbers), persistent=False)

    def forward(self, seeds: Tensor) -> Tensor:
        """Return the factors of the branches' outputs, float32 [depth, 2, N].

        A factor is 0 for an image that is left out. Otherwise it is the inverse of the share that
        is kept, so that the mean is unchanged.

        Args:
            seeds: int64 [N] from `image_seeds`.
        """
        draws = (_mix(seeds ^ self.branches) >> 8).float() * 2.0**-24  # in [0, 1), exact
        keep = self.keep.float()
        return (draws < keep).float() / keep


def _mix(numbers: Tensor) -> Tensor:
    """Return a one-to-one scrambling of 32-bit numbers, int64 (xor, shift and multiply)."""
    numbers = (numbers ^ numbers >> 16) * FIRST_FACTOR & LOW_32_BITS
    numbers = (numbers ^ numbers >> 15) * SECOND_FACTOR & LOW_32_BITS
    return numbers ^ numbers >> 16
