import io
import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transforms.images.encoding import EncodingConfig, encode

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
SMOOTH = np.linspace(0, 255, 48 * 48 * 3).reshape(48, 48, 3).astype(np.uint8)


@pytest.mark.parametrize("kind", ["jpeg", "webp", "png"])
def test_each_format_holds_the_picture(kind: Any) -> None:
    encoded = encode(SMOOTH, EncodingConfig(format=kind))
    image = Image.open(io.BytesIO(encoded))
    assert (image.format, image.size) == (kind.upper(), (48, 48))
    difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - SMOOTH)
    assert difference.mean() < 4
    assert encode(SMOOTH, EncodingConfig(format=kind)) == encoded


def test_png_loses_nothing() -> None:
    encoded = encode(PIXELS, EncodingConfig(format="png"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded))), PIXELS)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_quality_costs_bytes(kind: Any) -> None:
    sizes = [len(encode(PIXELS, EncodingConfig(format=kind, quality=q))) for q in (20, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_a_quality_without_effect_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        EncodingConfig(format="webp", quality=80)
        assert not caplog.records
        EncodingConfig(format="png", quality=80)
    assert "quality has no effect on PNG" in caplog.text
