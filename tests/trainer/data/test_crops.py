"""Crops: their boxes and content, which depend on the seed alone."""

import hashlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.support.image_shards import picture
from trainer.data.crops import Crops, CropsConfig, crop_image, decode, draw_box, global_scale
from trainer.data.photometric import DOWNSAMPLE, NUM_DRAWS, SOLARISE, PhotometricConfig


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


def sharp_picture() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 100, 100), generator=generator, dtype=torch.uint8)
    return pixels.repeat_interleave(2, 1).repeat_interleave(2, 2)


def downsampled_crops(seed: int, sizes: tuple[int, ...], **settings: Any) -> Crops:
    """Return crops of the sharp picture, half of which are downsampled."""
    return crop_image(
        sharp_picture(),
        CropsConfig(),
        PhotometricConfig(downsample=0.5, downsample_sizes=sizes, **settings),
        global_size=224,
        patch_size=16,
        patch_share=0.5,
        seed=seed,
    )


def test_the_image_is_downsampled_before_the_crop_as_in_stablerep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each crop is that of StableRep's transforms of PIL images, one after the other.

    PIL rounds other numbers than torchvision does for tensors, so
    crops differ by up to 3 of 255, and by less than 0.3 on average.
    """
    boxes: list[tuple[int, int, int, int]] = []

    def record(*arguments: Any) -> tuple[int, int, int, int]:
        boxes.append(draw_box(*arguments))
        return boxes[-1]

    monkeypatch.setattr("trainer.data.crops.draw_box", record)
    image, bicubic = v2.functional.to_pil_image(sharp_picture()), v2.InterpolationMode.BICUBIC
    seen = set()
    for seed in range(6):
        boxes.clear()
        crops = downsampled_crops(seed, (64, 128, 400), downsampled="image")
        sharp = downsampled_crops(seed, (64, 128, 400), downsampled="crop")
        assert torch.equal(crops.local_draws, sharp.local_draws)
        found = [*crops.global_pixels, *crops.local_pixels]
        sizes = torch.cat([crops.global_draws, crops.local_draws])[:, DOWNSAMPLE].int().tolist()
        plain = [*sharp.global_pixels, *sharp.local_pixels]
        for crop, size, box, whole in zip(found, sizes, boxes[:5], plain, strict=True):
            seen.add(size)
            if not 0 < size < 200:
                assert torch.equal(crop, whole), "a larger size changes nothing"
                continue
            before = v2.Resize(200)(v2.Resize(size)(image))
            side = [len(crop[0])] * 2
            cut = v2.functional.resized_crop(before, *box, side, interpolation=bicubic)
            expected = v2.functional.pil_to_tensor(cut).float()
            difference = min(
                ((each - expected).abs() for each in (crop.float(), crop.flip(-1).float())),
                key=torch.mean,
            )
            assert difference.max() <= 3
            assert difference.mean() < 0.3
            assert (crop.float() - whole.float()).abs().mean() > 5
    assert seen == {0, 64, 128, 400}


def test_a_local_crop_loses_more_detail_than_a_global_one() -> None:
    """Downsampled to 64 pixels, a small part of the image is left with few of them."""

    def sharpness(pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        return pixels[draws[:, DOWNSAMPLE] > 0].float().diff(dim=-1).abs().mean()

    all_crops = [downsampled_crops(seed, (64,), downsampled="image") for seed in range(20)]
    of_global, of_local = (
        sharpness(
            torch.cat([getattr(crops, f"{kind}_pixels") for crops in all_crops]),
            torch.cat([getattr(crops, f"{kind}_draws") for crops in all_crops]),
        )
        for kind in ("global", "local")
    )
    side = {"global": 224 / 0.66**0.5, "local": 96 / 0.2**0.5}  # Pixels of a crop per image side.
    assert of_local / of_global == pytest.approx(side["global"] / side["local"], rel=0.25)


def test_draws_keep_their_order() -> None:
    """Another order would give every training that continues other crops."""
    crops = [downsampled_crops(seed, (64, 128)) for seed in range(3)]
    draws = np.concatenate([np.concatenate([c.global_draws, c.local_draws]) for c in crops])
    masks = np.concatenate([c.patch_masks for c in crops])
    digest = hashlib.blake2b(draws.tobytes() + masks.tobytes(), digest_size=8).hexdigest()
    assert digest == "95bfb21150f1bb4e"


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
