"""RandAugment: timm's operations, a pure function of the seed."""

import pickle
import random

import numpy as np
import torch

from trainer.data.rand_augment import RandAugment

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 24, 24), dtype=np.uint8))


def test_the_seed_decides_and_global_states_stay() -> None:
    augment = RandAugment(2, 20)
    states = random.getstate(), np.random.get_state(legacy=True)
    first = [augment(PIXELS, seed) for seed in range(20)]
    assert random.getstate() == states[0]
    assert str(np.random.get_state(legacy=True)) == str(states[1])
    random.seed(5)
    np.random.seed(5)
    copy = pickle.loads(pickle.dumps(augment))
    assert all(torch.equal(copy(PIXELS, seed), pixels) for seed, pixels in enumerate(first))
    assert len({pixels.numpy().tobytes() for pixels in first}) > 10
    assert all(pixels.dtype == torch.uint8 and pixels.shape == (3, 24, 24) for pixels in first)


def test_operations_are_always_applied_with_the_whole_magnitude() -> None:
    for magnitude in (5, 20):
        transform = RandAugment(3, magnitude)._transform
        assert transform.num_layers == 3
        assert len(transform.ops) == 15
        for op in transform.ops:
            assert (op.prob, op.magnitude, op.magnitude_std) == (1.0, magnitude, 0)
            assert op.magnitude_max >= magnitude
