"""Colour operations against those of torchvision, one image at a time; statistics of the draws."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2f

from trainer.data import photometric as p
from trainer.data.photometric import PhotometricConfig, augment, draw_global, draw_local
from trainer.losses import fused

IDENTITY: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def pictures(number: int = 6, side: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, side, side), generator=generator, dtype=torch.uint8)


def no_draws(number: int) -> Tensor:
    """Return draws that change nothing."""
    draws = torch.zeros(number, p.NUM_DRAWS)
    draws[:, p.ORDER : p.ORDER + 4] = torch.arange(4.0)
    draws[:, p.BRIGHTNESS : p.SATURATION + 1] = 1.0
    return draws


CROPS_DOWNSAMPLED = PhotometricConfig(downsampled="crop")


def run(pixels: Tensor, draws: Tensor) -> Tensor:
    return augment(pixels, draws, PhotometricConfig(), **IDENTITY)


def test_without_draws_images_are_only_normalised() -> None:
    pixels = pictures()
    torch.testing.assert_close(run(pixels, no_draws(6)), pixels / 255)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    normalised = augment(pixels, no_draws(6), PhotometricConfig(), mean=mean, std=std)
    torch.testing.assert_close(normalised, v2f.normalize(pixels / 255, list(mean), list(std)))


@pytest.mark.parametrize(
    ("column", "factors", "operation"),
    [
        (p.BRIGHTNESS, (0.6, 1.4), v2f.adjust_brightness),
        (p.CONTRAST, (0.6, 1.4), v2f.adjust_contrast),
        (p.SATURATION, (0.0, 1.8), v2f.adjust_saturation),
        (p.HUE, (-0.1, 0.07), v2f.adjust_hue),
    ],
)
def test_each_jitter_operation_is_torchvisions(
    column: int, factors: tuple[float, float], operation: Callable[[Tensor, float], Tensor]
) -> None:
    pixels = pictures()
    pixels[1] = 77  # Grey: hue and saturation are undefined.
    draws = no_draws(6)
    draws[:, p.JITTER] = 1.0
    draws[:, column] = torch.linspace(*factors, 6)
    expected = [
        operation(image / 255, float(factor))
        for image, factor in zip(pixels, draws[:, column], strict=True)
    ]
    torch.testing.assert_close(run(pixels, draws), torch.stack(expected), atol=2e-5, rtol=1e-4)


def test_jitter_follows_each_images_own_order() -> None:
    pixels = pictures(2)
    draws = no_draws(2)
    draws[:, p.JITTER] = 1.0
    draws[:, p.BRIGHTNESS], draws[:, p.CONTRAST] = 1.4, 1.4
    draws[1, p.ORDER : p.ORDER + 4] = torch.tensor([1.0, 0.0, 2.0, 3.0])
    first = v2f.adjust_contrast(v2f.adjust_brightness(pixels[0] / 255, 1.4), 1.4)
    second = v2f.adjust_brightness(v2f.adjust_contrast(pixels[1] / 255, 1.4), 1.4)
    torch.testing.assert_close(run(pixels, draws), torch.stack([first, second]), atol=1e-5, rtol=0)


def test_grey_and_solarise_are_torchvisions() -> None:
    pixels = pictures(4)
    draws = no_draws(4)
    draws[1, p.GREY] = draws[2, p.SOLARISE] = 1.0
    expected = pixels / 255
    expected[1] = v2f.rgb_to_grayscale(pixels[1] / 255, num_output_channels=3)
    expected[2] = v2f.solarize(pixels[2], 128) / 255
    torch.testing.assert_close(run(pixels, draws), expected, atol=1e-5, rtol=0)


def test_blur_is_torchvisions() -> None:
    pixels = pictures()
    draws = no_draws(6)
    draws[:, p.SIGMA] = torch.tensor([0.0, 0.1, 0.5, 1.0, 1.5, 2.0])
    reach = 6  # Three times the largest sigma.
    expected = [pixels[0] / 255] + [
        v2f.gaussian_blur(image / 255, [2 * reach + 1] * 2, [float(sigma)] * 2)
        for image, sigma in zip(pixels[1:], draws[1:, p.SIGMA], strict=True)
    ]
    torch.testing.assert_close(run(pixels, draws), torch.stack(expected), atol=1e-5, rtol=0)


def test_downsample_goes_to_the_size_and_back() -> None:
    pixels = pictures(3, side=32)
    pixels[1, :, :, 16:] = 255  # An edge, at which bicubic interpolation overshoots white.
    draws = no_draws(3)
    draws[:, p.DOWNSAMPLE] = torch.tensor([0.0, 8.0, 64.0])
    whole = pixels / 255
    torch.testing.assert_close(run(pixels, draws), whole, msg="done before the crop")
    result = augment(pixels, draws, CROPS_DOWNSAMPLED, **IDENTITY)
    bicubic = v2f.InterpolationMode.BICUBIC
    small = v2f.resize(whole[1], [8, 8], interpolation=bicubic, antialias=True)
    back = v2f.resize(small, [32, 32], interpolation=bicubic, antialias=True)
    torch.testing.assert_close(result[0], whole[0])
    torch.testing.assert_close(result[1], back.clamp(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(result[2], whole[2], msg="a larger size changes nothing")


def test_operations_follow_one_another_as_listed() -> None:
    pixels = pictures(1, side=32)
    draws = no_draws(1)
    draws[:, [p.JITTER, p.GREY, p.SIGMA, p.SOLARISE]] = 1.0
    draws[:, p.BRIGHTNESS], draws[:, p.DOWNSAMPLE] = 1.4, 16.0
    bicubic = v2f.InterpolationMode.BICUBIC
    image = v2f.resize(pixels / 255, [16, 16], interpolation=bicubic, antialias=True)
    image = v2f.resize(image, [32, 32], interpolation=bicubic, antialias=True).clamp(0, 1)
    image = v2f.rgb_to_grayscale(v2f.adjust_brightness(image, 1.4), num_output_channels=3)
    image = v2f.solarize(v2f.gaussian_blur(image, [13, 13], [1.0, 1.0]), 128 / 255)
    found = augment(pixels, draws, CROPS_DOWNSAMPLED, **IDENTITY)
    torch.testing.assert_close(found, image, atol=1e-5, rtol=0)


def programs_of_compiled(*crops: tuple[int, int]) -> int:
    """Compare compiled with other operations on crops (number, side); return the programs."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    generator = np.random.default_rng(0)
    config = PhotometricConfig(downsample_sizes=(8,), downsampled="crop")
    for number, side in crops:
        draws = torch.from_numpy(np.stack([draw_global(config, generator) for _ in range(number)]))
        pixels = pictures(number, side)
        expected = augment(pixels, draws, config, **IDENTITY)
        compiling = partial(fused.run, compiled=True)
        compiled = augment(pixels, draws, config, **IDENTITY, run=compiling)
        torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=0)
    return int(counters["unique_graphs"])


@pytest.mark.xdist_group("models")
@pytest.mark.slow
def test_compiled_it_gives_the_same_pictures() -> None:
    assert programs_of_compiled((40, 24), (70, 24)) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("no_generated_code")
def test_there_are_two_programs_for_two_sizes_of_crops_and_any_number_of_them() -> None:
    assert programs_of_compiled((40, 24), (60, 16), (70, 24), (55, 16)) == 2 * 6


def test_only_what_was_drawn_goes_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying a constant in every call would wait for a kernel each time."""
    copied: list[torch.Size] = []

    def record(tensor: Tensor, _: torch.device) -> Tensor:
        copied.append(tensor.shape)
        return tensor

    monkeypatch.setattr(p, "to_device", record)
    draws = no_draws(6)
    draws[:, [p.JITTER, p.GREY]] = 1.0
    run(pictures(), draws)
    assert copied
    assert all(shape[0] in (0, 6) for shape in copied)


def test_an_image_does_not_depend_on_its_batch() -> None:
    generator = np.random.default_rng(0)
    config = PhotometricConfig(downsample=0.5, downsample_sizes=(8, 16), downsampled="crop")
    pixels = pictures(32, side=32)
    draws = torch.from_numpy(np.stack([draw_global(config, generator) for _ in range(32)]))
    together = augment(pixels, draws, config, **IDENTITY)
    for number in range(32):
        one = slice(number, number + 1)
        alone = augment(pixels[one], draws[one], config, **IDENTITY)
        torch.testing.assert_close(alone[0], together[number], atol=1e-6, rtol=0)


def test_draws_have_the_probabilities_of_the_authors_code() -> None:
    generator = np.random.default_rng(0)
    config = PhotometricConfig()
    draws = np.stack([draw_global(config, generator) for _ in range(20_000)])
    assert draws[:, p.JITTER].mean() == pytest.approx(0.8, abs=0.01)
    assert draws[:, p.GREY].mean() == pytest.approx(0.2, abs=0.01)
    assert (draws[:, p.DOWNSAMPLE] > 0).mean() == pytest.approx(0.05, abs=0.006)
    assert set(draws[:, p.DOWNSAMPLE]) == {0, 64, 128}
    # Half are always blurred, half with probability 0.1; only the latter are solarised, with 0.2.
    assert (draws[:, p.SIGMA] > 0).mean() == pytest.approx(0.55, abs=0.012)
    assert draws[:, p.SOLARISE].mean() == pytest.approx(0.1, abs=0.008)
    for column, low, high in (
        (p.BRIGHTNESS, 0.6, 1.4),
        (p.CONTRAST, 0.6, 1.4),
        (p.SATURATION, 0.8, 1.2),
        (p.HUE, -0.1, 0.1),
    ):
        assert low <= draws[:, column].min()
        assert draws[:, column].max() <= high
        assert draws[:, column].mean() == pytest.approx((low + high) / 2, abs=0.006)
    orders = {tuple(row) for row in draws[:, p.ORDER : p.ORDER + 4]}
    assert len(orders) == 24
    local = np.stack([draw_local(config, generator) for _ in range(20_000)])
    assert (local[:, p.SIGMA] > 0).mean() == pytest.approx(0.5, abs=0.012)
    assert local[:, p.SOLARISE].sum() == 0
    blurred = local[local[:, p.SIGMA] > 0, p.SIGMA]
    assert blurred.mean() == pytest.approx(1.05, abs=0.02)


def test_draws_follow_the_settings() -> None:
    generator = np.random.default_rng(0)
    config = PhotometricConfig(
        jitter=0.3,
        brightness=0.1,
        contrast=0.2,
        saturation=0.3,
        hue=0.4,
        grey=0.7,
        sigma=(3.0, 4.0),
        global_blur_only=0.2,
        global_blur=0.5,
        global_solarise=0.25,
        local_blur=0.9,
        downsample=0.8,
        downsample_sizes=(32,),
    )
    draws = np.stack([draw_global(config, generator) for _ in range(4000)])
    often = {p.JITTER: 0.3, p.GREY: 0.7, p.DOWNSAMPLE: 0.8, p.SIGMA: 0.6, p.SOLARISE: 0.2}
    for column, share in often.items():
        assert (draws[:, column] > 0).mean() == pytest.approx(share, abs=0.03)
    reach = {p.BRIGHTNESS: 0.1, p.CONTRAST: 0.2, p.SATURATION: 0.3, p.HUE: 0.4}
    for column, half in reach.items():
        assert np.ptp(draws[:, column]) == pytest.approx(2 * half, rel=0.01)
    sigmas = np.stack([draw_local(config, generator) for _ in range(4000)])[:, p.SIGMA]
    assert (sigmas > 0).mean() == pytest.approx(0.9, abs=0.03)
    assert 3.0 <= sigmas[sigmas > 0].min() < 3.01
    assert 3.99 < sigmas.max() <= 4.0


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [({"jitter": 1.2}, "less than or equal to 1"), ({"sigma": (2.0, 1.0)}, "expected low <= high")],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PhotometricConfig(**wrong)


def moments(images: Tensor) -> Tensor:
    """Return mean, spread and sharpness of each channel, [N, 9]."""
    sharpness = images.diff(dim=-1).abs().mean(dim=(2, 3))
    return torch.cat([images.mean(dim=(2, 3)), images.std(dim=(2, 3)), sharpness], dim=1)


def test_statistics_are_those_of_torchvisions_transforms_per_image() -> None:
    """The whole augmentation, applied 3,000 times to one picture."""
    config = PhotometricConfig(global_blur_only=0.0, global_blur=0.5, downsample=0.0)
    picture = pictures(1, side=16)[0]
    picture[0] //= 2  # Some colour, so that hue and saturation can change.
    reference = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5),
            v2.RandomSolarize(128 / 255, 0.2),
        ]
    )
    torch.manual_seed(0)
    theirs = moments(torch.stack([reference(picture) for _ in range(3000)]))
    generator = np.random.default_rng(0)
    draws = torch.from_numpy(np.stack([draw_global(config, generator) for _ in range(3000)]))
    pixels = picture.expand(3000, -1, -1, -1)
    ours = moments(augment(pixels, draws, config, **IDENTITY))
    error = (theirs.std(dim=0).square() + ours.std(dim=0).square()).div(3000).sqrt()
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 4 * error).all()
    torch.testing.assert_close(ours.std(dim=0), theirs.std(dim=0), rtol=0.12, atol=0)
