import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tiny_sd.composites import Composer, paste
from pipelines.tiny_sd.drawings import Drawing
from pipelines.tiny_sd.scenes import BACKGROUNDS, SIZE


def drawing(concept: str, colour: tuple[int, int, int]) -> Drawing:
    rgba = np.empty((100, 60, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = colour, 255
    return Drawing(concept, "noto", rgba)


def composer() -> Composer:
    return Composer([drawing("a", (255, 0, 255)), drawing("b", (0, 255, 255))], ["a", "b"], seed=3)


def test_a_seed_fixes_the_pictures() -> None:
    one, two = (composer().sample(16, np.random.default_rng(5)) for _ in range(2))
    assert (one.pictures == two.pictures).all()
    assert (one.concepts == two.concepts).all()


def test_the_centre_shows_the_concept_and_the_corner_the_background() -> None:
    batch = composer().sample(64, np.random.default_rng(6), np.arange(64) % 2)
    assert batch.pictures.shape == (64, SIZE, SIZE, 3)
    centre = batch.pictures[:, SIZE // 2, SIZE // 2]
    assert (centre[::2] == (255, 0, 255)).all()
    assert (centre[1::2] == (0, 255, 255)).all()
    black = batch.pictures[batch.backgrounds == BACKGROUNDS.index("black")]
    assert len(black) and (black[:, 0, 0] < 60).all()


def test_a_concept_without_drawings_is_an_error() -> None:
    with pytest.raises(ValueError, match="'b'"):
        Composer([drawing("a", (1, 2, 3))], ["a", "b"], seed=0)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_paste_blends_by_alpha(alpha: int, colour: int, under: int) -> None:
    picture = np.full((SIZE, SIZE, 3), under, np.uint8)
    cutout = np.empty((SIZE, SIZE, 4), np.uint16)
    cutout[..., :3], cutout[..., 3] = colour * alpha, alpha
    paste(picture, cutout, np.random.default_rng(0))
    wanted = (colour * alpha + under * (255 - alpha)) / 255
    assert np.abs(picture - wanted).max() <= 0.5
