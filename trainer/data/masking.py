"""Masks for iBOT: which images of a batch are masked, and which of their patches are hidden.

Source: paper section 3.4. The images are chosen over the whole batch and not by slot, so the choice
does not depend on the number of ranks.
"""

import numpy as np
from numpy.typing import NDArray


def choose_masked_images(num_images: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Choose which images of a batch are masked: exactly `round(share * num_images)` of them.

    Args:
        num_images: Number of images (global crops) in the whole batch, over all ranks and
            micro-batches.
        share: Share of the images that are masked (paper: 0.5).
        seed: Seed of this step.

    Returns:
        bool [num_images].
    """
    return _choose(num_images, share, np.random.default_rng(seed))


def draw_patch_mask(
    num_patches: int, share: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw the hidden patches of one image: `round(share * num_patches)`, uniformly.

    Returns:
        bool [num_patches].
    """
    return _choose(num_patches, share, generator)


def _choose(number: int, share: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    chosen = np.zeros(number, dtype=np.bool_)
    chosen[generator.permutation(number)[: round(share * number)]] = True
    return chosen
