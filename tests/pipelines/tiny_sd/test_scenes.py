import numpy as np
import pytest

from pipelines.tiny_sd.scenes import BACKGROUNDS, COLOURS, SIZE, paint_background


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_seed_fixes_a_background_and_seeds_differ(name: str) -> None:
    first, again, other = (paint_background(name, np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("name", COLOURS)
def test_a_colour_is_nearest_to_itself_among_the_named(name: str) -> None:
    for seed in range(20):
        mean = paint_background(name, np.random.default_rng(seed)).mean(axis=(0, 1))
        distances = {n: np.linalg.norm(mean - np.array(c)) for n, c in COLOURS.items()}
        assert min(distances, key=distances.__getitem__) == name
