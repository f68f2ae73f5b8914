"""Features: the normalised cls token, and raw pixels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.evaluation import MODEL
from trainer.evaluate.datasets import Split
from trainer.evaluate.features import (
    PIXELS_SIDE,
    Extraction,
    encoder_subject,
    load_square,
    pixels_subject,
)
from trainer.models.vit import build_encoder
from transforms.core.errors import ConfigError, DamagedFileError


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def noise(count: int, size: int = 16) -> Split:
    generator = np.random.default_rng(0)
    pictures = tuple(
        png(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)
    )
    return Split(pictures, np.zeros(count, dtype=np.int64))


def test_features_are_the_normalised_cls_token() -> None:
    encoder: Any = build_encoder(MODEL, seed=3).eval()
    split = noise(5)
    subject = encoder_subject("trained", encoder, MODEL, Extraction("cpu", 2, 0))
    found = subject.extract(split.pictures, lambda count: None).values
    for picture, features in zip(split.pictures, found, strict=True):
        assert isinstance(picture, bytes)
        pixels = np.asarray(Image.open(io.BytesIO(picture))) / 255
        pixels = (pixels - np.array(MODEL.mean)) / np.array(MODEL.std)
        image = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = encoder.forward_features(image)[0, 0].numpy()
        assert np.allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (4, 0), (3, 2)])
def test_batches_and_workers_change_nothing(batch_size: int, num_workers: int) -> None:
    split, encoder = noise(7), build_encoder(MODEL, seed=3)
    done: list[int] = []
    extraction = Extraction("cpu", batch_size, num_workers)
    found = (
        encoder_subject("trained", encoder, MODEL, extraction)
        .extract(split.pictures, done.append)
        .values
    )
    whole = encoder_subject("trained", encoder, MODEL, Extraction("cpu", 7, 0))
    assert np.allclose(found, whole.extract(split.pictures, lambda count: None).values, atol=1e-5)
    assert sum(done) == 7


def test_untrained_encoders_are_deterministic() -> None:
    split, extraction = noise(3), Extraction("cpu", 8, 0)
    runs = [
        encoder_subject("untrained", build_encoder(MODEL, seed), MODEL, extraction)
        .extract(split.pictures, lambda count: None)
        .values
        for seed in (1, 1, 2)
    ]
    assert (runs[0] == runs[1]).all()
    assert not np.allclose(runs[0], runs[2])


def test_pictures_are_scaled_by_their_shorter_side_and_cut_in_the_middle() -> None:
    pixels = np.zeros((40, 120, 3), dtype=np.uint8)
    pixels[:, 40:80] = 255
    square = np.asarray(load_square(png(pixels), 20))
    assert square.shape == (20, 20, 3)
    assert (square[:, 2:-2] == 255).all(), "only the white middle is left"
    assert np.asarray(load_square(png(pixels.transpose(1, 0, 2)), 20)).shape == (20, 20, 3)


def test_grey_and_transparent_pictures_become_rgb() -> None:
    assert load_square(png(np.zeros((8, 8), dtype=np.uint8)), 16).mode == "RGB"
    assert load_square(png(np.zeros((8, 8, 4), dtype=np.uint8)), 16).mode == "RGB"
    assert load_square(np.full((8, 8), 7, dtype=np.uint8), 16).getpixel((3, 3)) == (7, 7, 7)


def test_pixel_features_are_pixels() -> None:
    split = noise(2, size=PIXELS_SIDE)
    found = pixels_subject().extract(split.pictures, lambda count: None).values
    assert found.shape == (2, PIXELS_SIDE * PIXELS_SIDE * 3)
    first = split.pictures[0]
    assert isinstance(first, bytes)
    assert np.allclose(found[0] * 255, np.asarray(Image.open(io.BytesIO(first))).ravel())


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(DamagedFileError, match=r"broken\.jpg cannot be decoded"):
        load_square(broken, 16)


def test_pictures_that_cannot_be_decoded_are_marked() -> None:
    pictures = [b"broken", *noise(2).pictures]
    encoder = build_encoder(MODEL, seed=3)
    for subject in (
        encoder_subject("trained", encoder, MODEL, Extraction("cpu", 2, 0)),
        pixels_subject(),
    ):
        found = subject.extract(pictures, lambda count: None)
        assert found.readable.tolist() == [False, True, True]
        assert (found.values[0] == 0).all()
        whole = subject.extract(pictures[1:], lambda count: None)
        assert np.allclose(found.values[1:], whole.values, atol=1e-5)


def test_bfloat16_rounds_and_an_encoder_that_is_broken_is_said() -> None:
    encoder: Any = build_encoder(MODEL, seed=3)
    pictures = noise(4).pictures
    exact, rounded = (
        encoder_subject("trained", encoder, MODEL, Extraction("cpu", 4, 0, precision), "weights")
        for precision in ("fp32", "bf16")
    )
    found = [s.extract(pictures, lambda count: None).values for s in (exact, rounded)]
    assert 0 < np.abs(found[0] - found[1]).max() < 0.1
    assert exact.digest != rounded.digest
    encoder.norm.weight.data[0] = np.nan
    with pytest.raises(ConfigError, match="the encoder is broken"):
        exact.extract(pictures, lambda count: None)
