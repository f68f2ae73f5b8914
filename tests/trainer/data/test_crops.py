"""Crops: their boxes and content, which depend on the seed alone."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.support.image_shards import picture
from trainer.data.crops import Crops, CropsConfig, crop_image, decode, draw_box, global_scale
from trainer.data.photometric import NUM_DRAWS, SOLARISE, PhotometricConfig


def crop(seed: int, pixels: torch.Tensor | None = None, **settings: Any) -> Crops:
    return crop_image(
        decode(picture(0, side=40)) if pixels is None else pixels,
        CropsConfig(**{"num_local": 3, "local_size": 16, **settings}),
        PhotometricConfig(),
        global_size=32,
        patch_size=8,
        patch_share=0.5,
        seed=seed,
    )


def test_shapes_and_types() -> None:
    crops = crop(0, num_global=2)
    assert crops.global_pixels.shape == (2, 3, 32, 32)
    assert crops.local_pixels.shape == (3, 3, 16, 16)
    assert crops.global_pixels.dtype == crops.local_pixels.dtype == torch.uint8
    assert crops.global_draws.shape == (2, NUM_DRAWS)
    assert crops.local_draws.shape == (3, NUM_DRAWS)
    assert crops.patch_masks.shape == (2, 16)
    assert crops.patch_masks.sum(dim=1).tolist() == [8, 8]
    assert not torch.equal(*crops.patch_masks)


def test_no_local_crops_are_empty_tensors() -> None:
    crops = crop(0, num_local=0)
    assert crops.local_pixels.shape == (0, 3, 16, 16)
    assert crops.local_draws.shape == (0, NUM_DRAWS)


def test_the_seed_alone_decides() -> None:
    torch.manual_seed(0)
    first = crop(5)
    torch.manual_seed(1)
    np.random.seed(1)
    second, other = crop(5), crop(6)
    assert torch.equal(first.global_pixels, second.global_pixels)
    assert torch.equal(first.local_draws, second.local_draws)
    assert torch.equal(first.patch_masks, second.patch_masks)
    assert not torch.equal(first.global_pixels, other.global_pixels)


def test_global_and_local_crops_are_drawn_as_such() -> None:
    """Red encodes the column of the picture, green the row."""
    place = torch.arange(200, dtype=torch.uint8)
    columns = place.expand(200, 200)
    found = [crop(seed, torch.stack([columns, columns.T, columns])) for seed in range(60)]
    mirrored = []
    for kind, low, high in (("global", 0.32, 1.0), ("local", 0.08, 0.32)):
        pixels = torch.cat([getattr(crops, f"{kind}_pixels") for crops in found]).float()
        side = pixels.shape[-1]
        reach = pixels[:, :2].amax(dim=(2, 3)) - pixels[:, :2].amin(dim=(2, 3))
        shares = (reach / 200 * side / (side - 1)).prod(dim=1)
        assert low - 0.02 < shares.min() < low + 0.05
        assert high - 0.05 < shares.max() < high + 0.02
        mirrored += (pixels[:, 0, 0, 0] > pixels[:, 0, 0, -1]).tolist()
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.1)
    assert any(crops.global_draws[:, SOLARISE].any() for crops in found)
    assert not any(crops.local_draws[:, SOLARISE].any() for crops in found)


def test_boxes_are_distributed_as_torchvisions() -> None:
    generator = np.random.default_rng(0)
    image = torch.empty(3, 60, 90)
    reference = v2.RandomResizedCrop(8, scale=(0.08, 0.32))
    torch.manual_seed(0)
    ours, theirs = [], []
    for _ in range(4000):
        ours.append(draw_box(60, 90, (0.08, 0.32), (3 / 4, 4 / 3), generator))
        box = reference.make_params([image])
        theirs.append([box[name] for name in ("top", "left", "height", "width")])
    for own, other in zip(np.array(ours).T, np.array(theirs).T, strict=True):
        assert own.mean() == pytest.approx(other.mean(), rel=0.05)
        assert own.std() == pytest.approx(other.std(), rel=0.06)
    _, _, height, width = np.array(ours).T
    assert np.log(width / height).mean() == pytest.approx(0.0, abs=0.01), "wide as often as high"


def test_a_box_that_never_fits_is_the_centre() -> None:
    generator = np.random.default_rng(0)
    assert draw_box(10, 1000, (1.0, 1.0), (3 / 4, 4 / 3), generator) == (0, 493, 10, 13)
    assert draw_box(1000, 10, (1.0, 1.0), (3 / 4, 4 / 3), generator) == (493, 0, 13, 10)


def test_the_whole_image_resized_is_torchvisions_resize() -> None:
    pixels = decode(picture(3, side=40))[:, :20]  # Twice as wide as high.
    whole = {"global_scale": (1.0, 1.0), "local_scale": (1.0, 1.0), "ratio": (2.0, 2.0)}
    crops, mirrored = (crop(0, pixels, flip=flip, **whole) for flip in (0.0, 1.0))
    bicubic = v2.InterpolationMode.BICUBIC
    for side, found in ((32, crops.global_pixels), (16, crops.local_pixels)):
        expected = v2.Resize([side, side], interpolation=bicubic, antialias=True)(pixels)
        assert all(torch.equal(pixels, expected) for pixels in found)
    assert torch.equal(mirrored.global_pixels, crops.global_pixels.flip(-1))


def test_the_default_scale_follows_multi_crop() -> None:
    assert global_scale(CropsConfig()) == (0.32, 1.0)
    assert global_scale(CropsConfig(num_local=0)) == (0.14, 1.0)
    assert global_scale(CropsConfig(num_local=0, global_scale=(0.5, 0.6))) == (0.5, 0.6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats_decode_to_three_channels(kind: str, mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (9, 7), 100).save(buffer, kind)
    assert decode(buffer.getvalue()).shape == (3, 7, 9)


@pytest.mark.parametrize("damage", [b"", b"not an image", picture(0)[:100]])
def test_what_cannot_be_decoded_raises(damage: bytes) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        decode(damage)


def test_a_jpeg_that_is_cut_off_raises() -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    with pytest.raises(RuntimeError):
        decode(buffer.getvalue()[:1500])
