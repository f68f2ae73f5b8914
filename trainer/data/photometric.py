"""Photometric augmentation of a whole batch on the device.

Source: BYOL's augmentation, with the values of the authors' code (github.com/google-research/
syn-rep-learn, `SynCLR/train_pytorch/dataset/augmentations.py`), and StableRep's downsampling. The
random draws are made on the CPU together with the crops (see `trainer.data.crops`), so the same
draws give the same images in any batch. Operations are defined as in torchvision. Deliberate
difference: the radius of the Gaussian kernel is three times the largest sigma (6 pixels by default;
the authors' code: 4).

Order: downsample (here only with `downsampled: crop`, otherwise before the crop), colour jitter
(its four operations in a random order), grey, blur, solarise.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional

from transforms.core.config import Config, Probability

# Columns of the draws. ORDER is the first of four columns: the operations in their random order.
DOWNSAMPLE, JITTER, ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, SIGMA, SOLARISE = (
    0, 1, 2, 6, 7, 8, 9, 10, 11, 12,
)  # fmt: skip
NUM_DRAWS = 13
LUMA = (0.2989, 0.587, 0.114)
SOLARISE_THRESHOLD = 128 / 255

Run = Callable[[Callable[..., Tensor], tuple[Tensor, ...]], Tensor]
"""Runs a chain of elementwise operations on tensors, possibly compiled."""


class PhotometricConfig(Config):
    """Probabilities and strengths; the defaults are those of the authors' code."""

    jitter: Probability = 0.8
    """Probability of colour jitter (BYOL and the authors' code: 0.8)."""
    brightness: Probability = 0.4
    """Brightness is scaled by 1 - this to 1 + this (BYOL and the authors' code: 0.4)."""
    contrast: Probability = 0.4
    """Contrast is scaled by 1 - this to 1 + this (BYOL and the authors' code: 0.4)."""
    saturation: Probability = 0.2
    """Saturation is scaled by 1 - this to 1 + this (BYOL and the authors' code: 0.2)."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Hue is shifted by up to this share of the circle in either direction (BYOL and the
    authors' code: 0.1)."""
    grey: Probability = 0.2
    """Probability of conversion to grey (BYOL and the authors' code: 0.2)."""
    sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    """Smallest and largest sigma of the Gaussian blur, in pixels (BYOL and the authors' code:
    0.1 to 2)."""
    global_blur_only: Probability = 0.5
    """Share of global crops that are always blurred and never solarised; the others are blurred and
    solarised with the probabilities `global_blur` and `global_solarise` (the authors' code:
    0.5)."""
    global_blur: Probability = 0.1
    """Probability of blur for global crops that are not `global_blur_only` (BYOL and the authors'
    code: 0.1)."""
    global_solarise: Probability = 0.2
    """Probability of solarising for global crops that are not `global_blur_only` (BYOL and the
    authors' code: 0.2)."""
    local_blur: Probability = 0.5
    """Probability of blur for local crops (DINO and the authors' code: 0.5)."""
    downsample: Probability = 0.05
    """Probability, drawn for each crop, of downsampling and upsampling (StableRep: 0.05)."""
    downsample_sizes: tuple[PositiveInt, ...] = (64, 128)
    """Sides in pixels to downsample to, of which one is drawn (StableRep: 64, 128). It is that of
    the shorter side; what is not larger stays as it is."""
    downsampled: Literal["image", "crop"] = "image"
    """Input of downsampling: the whole `image` before the crop is cut from it (StableRep), so that
    a local crop loses more detail than a global one; or the `crop` (ours, earlier versions)."""

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(f"sigma is {self.sigma}: expected low <= high")
        return self


def draw_global(config: PhotometricConfig, generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw the row of one global crop, float32 [NUM_DRAWS]."""
    blur_only = generator.random() < config.global_blur_only
    blur = 1.0 if blur_only else config.global_blur
    solarise = 0.0 if blur_only else config.global_solarise
    return _draw(config, blur, solarise, generator)


def draw_local(config: PhotometricConfig, generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw the row of one local crop, float32 [NUM_DRAWS]."""
    return _draw(config, config.local_blur, 0.0, generator)


def _draw(
    config: PhotometricConfig, blur: float, solarise: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    draws = np.zeros(NUM_DRAWS, dtype=np.float32)
    if config.downsample_sizes and generator.random() < config.downsample:
        draws[DOWNSAMPLE] = generator.choice(config.downsample_sizes)
    draws[JITTER] = generator.random() < config.jitter
    draws[ORDER : ORDER + 4] = generator.permutation(4)
    for column, reach in (
        (BRIGHTNESS, config.brightness),
        (CONTRAST, config.contrast),
        (SATURATION, config.saturation),
    ):
        draws[column] = generator.uniform(max(0.0, 1.0 - reach), 1.0 + reach)
    draws[HUE] = generator.uniform(-config.hue, config.hue)
    draws[GREY] = generator.random() < config.grey
    sigma = generator.uniform(*config.sigma)
    draws[SIGMA] = sigma if generator.random() < blur else 0.0
    draws[SOLARISE] = generator.random() < solarise
    return draws


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device, without waiting for a GPU."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def run_as_is(chain: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
    """Run a chain without compilation."""
    return chain(*tensors)


@torch.no_grad()
def augment(
    pixels: Tensor,
    draws: Tensor,
    config: PhotometricConfig,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    run: Run = run_as_is,
) -> Tensor:
    """Apply the augmentation that was drawn, and normalise.

    Args:
        pixels: uint8 [N, 3, H, W], on the device; with `downsampled: image` they come from images
            that were downsampled as drawn.
        draws: float32 [N, NUM_DRAWS], on the CPU.
        config: Settings that the draws were made with.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        run: Runs the operations of colour jitter, grey and solarise (`trainer.losses.fused` can
            compile them).

    Returns:
        float32 [N, 3, H, W] on the device of the pixels.
    """
    images = pixels.float() / 255.0
    if config.downsampled == "crop":
        _downsample(images, draws[:, DOWNSAMPLE])
    _jitter(images, draws, run)
    grey = _rows(draws[:, GREY] > 0, images)
    images[grey] = run(_grey, (images[grey],)).expand(-1, 3, -1, -1)
    _blur(images, draws[:, SIGMA], radius=math.ceil(3 * config.sigma[1]))
    solarised = _rows(draws[:, SOLARISE] > 0, images)
    images[solarised] = run(_solarise, (images[solarised],))
    for channel, channel_mean, channel_std in zip(images.unbind(dim=1), mean, std, strict=True):
        channel.sub_(channel_mean).div_(channel_std)
    return images


def _rows(chosen: Tensor, images: Tensor) -> Tensor:
    """Return the indices of the chosen images (bool [N] on the CPU) on the device of `images`."""
    return to_device(chosen.nonzero().squeeze(1), images.device)


def _downsample(images: Tensor, sizes: Tensor) -> None:
    """Resize in place to the drawn size and back, where it is smaller than the image."""
    side = images.shape[-1]
    for size in sizes.unique().int().tolist():
        if 0 < size < side:
            rows = _rows(sizes == size, images)
            small = _resize(images[rows], size)
            images[rows] = _resize(small, side).clamp_(0.0, 1.0)


def _resize(images: Tensor, side: int) -> Tensor:
    return functional.interpolate(images, size=(side, side), mode="bicubic", antialias=True)


def _jitter(images: Tensor, draws: Tensor, run: Run) -> None:
    """Apply colour jitter in place: four operations, in the order drawn for each image."""
    jittered = draws[:, JITTER] > 0
    operations = (
        (_brightness, BRIGHTNESS),
        (_contrast, CONTRAST),
        (_saturation, SATURATION),
        (_hue, HUE),
    )
    for turn in range(4):
        for number, (operation, column) in enumerate(operations):
            chosen = jittered & (draws[:, ORDER + turn] == number)
            rows = _rows(chosen, images)
            factors = to_device(draws[chosen, column].view(-1, 1, 1, 1), images.device)
            images[rows] = run(operation, (images[rows], factors))


def _grey(images: Tensor) -> Tensor:
    """Return the luminance, [N, 1, H, W]."""
    red, green, blue = images.split(1, dim=1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(others, images, factors).clamp_(0.0, 1.0)


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return (images * factors).clamp_(0.0, 1.0)


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean(dim=(2, 3), keepdim=True), factors)


def _saturation(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, _grey(images), factors)


def _hue(images: Tensor, factors: Tensor) -> Tensor:
    """Shift the hue of HSV by a share of the circle."""
    value = images.amax(dim=1)
    chroma = value - images.amin(dim=1)
    red, green, blue = images.unbind(dim=1)
    # Hue in sixths of the circle, times chroma.
    others = torch.where(green == value, blue - red + 2.0 * chroma, red - green + 4.0 * chroma)
    sixths = torch.where(red == value, green - blue, others)
    hue = sixths / chroma.clamp(min=1e-12) + 6.0 * factors.squeeze(1)
    channels = []
    for start in (5.0, 3.0, 1.0):
        position = (start + hue).remainder(6.0)
        share = torch.minimum(position, 4.0 - position).clamp_(0.0, 1.0)
        channels.append(value - chroma * share)
    return torch.stack(channels, dim=1)


def _blur(images: Tensor, sigmas: Tensor, radius: int) -> None:
    """Blur in place with a Gaussian of each image's sigma (0: not at all), with mirrored borders.

    A matrix product along each axis reads and writes the images once; a sum over the taps of the
    kernel would do so for every tap.
    """
    blurred = sigmas > 0
    rows = _rows(blurred, images)
    if not len(rows):
        return
    radius = min(radius, images.shape[-1] - 1)
    distances = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = (-0.5 * (distances / sigmas[blurred, None]).square()).softmax(dim=1)
    # The kernel as a matrix: column i holds the weight of every pixel in the blurred pixel i.
    identity = torch.eye(images.shape[-1], device=images.device)
    padded = functional.pad(identity[None], (radius, radius), mode="reflect")[0]
    taps = padded.unfold(1, len(identity), 1)  # [side, taps, side]
    kernels = torch.einsum("nt,sti->nsi", to_device(weights, images.device), taps)[:, None]
    images[rows] = kernels.mT @ (images[rows] @ kernels)


def _solarise(images: Tensor) -> Tensor:
    return torch.where(images >= SOLARISE_THRESHOLD, 1.0 - images, images)
