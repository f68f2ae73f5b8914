"""Masks: exact shares, drawn uniformly."""

import numpy as np

from trainer.data.masking import choose_masked_images, draw_patch_mask


def test_images_are_chosen_over_the_batch_and_not_by_slot() -> None:
    choices = np.stack([choose_masked_images(64, 0.5, seed) for seed in range(400)])
    assert (choices.sum(axis=1) == 32).all()
    often = choices.mean(axis=0)
    assert often.min() > 0.38
    assert often.max() < 0.62


def test_half_of_the_patches_are_hidden_uniformly() -> None:
    generator = np.random.default_rng(0)
    masks = np.stack([draw_patch_mask(196, 0.5, generator) for _ in range(500)])
    assert (masks.sum(axis=1) == 98).all()
    assert draw_patch_mask(9, 0.3, generator).sum() == 3, "2.7, rounded"
    assert masks.mean(axis=0).min() > 0.39
    assert masks.mean(axis=0).max() < 0.61
