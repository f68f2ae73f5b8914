"""RandAugment of crops on the CPU, by timm's operations (Cubuk et al. 2019).

timm draws from the global random states of Python and NumPy. Here the draws depend on a seed alone,
and these states are as before afterwards.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transforms.core.seeding import derive


class RandAugment:
    """Changes a crop by some operations that are drawn for it. It pickles.

    As in AugReg, an operation that is drawn is always applied, with the full magnitude.

    Args:
        num_ops: Number of operations that are drawn for a crop, with repetition.
        magnitude: Strength of the operations; 10 is the usual upper end of their ranges, and
            larger values extrapolate.
    """

    def __init__(self, num_ops: int, magnitude: int) -> None:
        from timm.data import rand_augment_transform

        # Without `mmax` timm would cut the magnitude off at 10.
        name = f"rand-n{num_ops}-m{magnitude}-mmax{max(magnitude, 10)}-p1"
        self._transform: Any = rand_augment_transform(name)

    def __call__(self, pixels: Tensor, seed: int) -> Tensor:
        """Return the crop after the operations that belong to a seed.

        Args:
            pixels: uint8 [3, H, W].
            seed: Seed of this crop.
        """
        from PIL import Image

        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        with seeded(seed):
            changed = self._transform(image)
        return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random states of Python and NumPy in the body; restore them at its end."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(derive(seed, "numpy", bits=32))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
