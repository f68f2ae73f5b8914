"""tiny-sd's autoencoder: diffusers' `AutoencoderKL`, 64x64x3 pixels to 8x8x16 latents and back.

The loss on fresh composites is a squared error, an edge term (the absolute error of image gradients
at two scales, which keeps outlines sharp) and a KL term of small weight. There is no adversarial or
perceptual network, which would cost more than the model itself.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from pipelines.tiny_sd.composites import Composer
from pipelines.tiny_sd.training import (
    Clock,
    average_gradients,
    cosine_rate,
    half_precision,
    load_checkpoint,
    rank_and_world,
    save_checkpoint,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

log = logging.getLogger(__name__)


class AutoencoderConfig(BaseModel):
    """Shape and training of the autoencoder."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    channels: tuple[int, ...] = (32, 32, 64, 96)
    """Channels of each level, from 64x64 down to 8x8."""
    latent_channels: int = 16
    """Channels of a latent."""
    num_steps: int = 5500
    """Training steps."""
    num_decoder_steps: int = 2200
    """Last of these steps, with a frozen encoder: they sharpen the pictures, not the latents."""
    num_crop_steps: int = 3000
    """First of these steps, on 32x32 crops: a quarter of the cost, enough for local patterns."""
    batch_size: int = 32
    """Composites per step, over all processes."""
    learning_rate: float = 1.5e-3
    """Peak rate of AdamW: 100 steps of warm-up, a cosine to zero, and the same for the decoder."""
    edge_weight: float = 0.3
    """Weight of the edge term relative to the squared error."""
    kl_weight: float = 2e-4
    """Weight of the KL divergence per latent value."""
    seed: int = 0
    """Seed of the weights, the composites and the latent noise."""


def build_autoencoder(config: AutoencoderConfig) -> "AutoencoderKL":
    """Make an untrained autoencoder."""
    from diffusers import AutoencoderKL

    levels = len(config.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 pictures [N, H, W, 3] to float [N, 3, H, W] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def crop(pictures: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut one random 32x32 window out of each picture: [N, 64, 64, 3] to [N, 32, 32, 3]."""
    corners = rng.integers(33, size=(len(pictures), 2))
    return np.stack(
        [p[y : y + 32, x : x + 32] for p, (y, x) in zip(pictures, corners, strict=True)]
    )


def edge_loss(painted: Tensor, real: Tensor) -> Tensor:
    """Return the mean absolute error of horizontal and vertical differences at full and half size.

    Args:
        painted: [N, 3, H, W].
        real: [N, 3, H, W].
    """
    difference = painted - real
    half = F.avg_pool2d(difference, 2)
    return sum(
        (d.diff(dim=axis).abs().mean() for d in (difference, half) for axis in (2, 3)),
        start=difference.new_zeros(()),
    )


def reconstruct(
    model: "AutoencoderKL", real: Tensor, generator: torch.Generator, encoder_frozen: bool
) -> tuple[Tensor, Tensor]:
    """Encode, draw latents and decode.

    Args:
        model: The autoencoder.
        real: Pictures [N, 3, H, W] in -1..1.
        generator: Random generator of the latents.
        encoder_frozen: True to leave the encoder out of the gradient.

    Returns:
        Decoded pictures [N, 3, H, W] and the KL divergence per latent value.
    """
    with half_precision():
        with torch.set_grad_enabled(not encoder_frozen):
            posterior = model.encode(real).latent_dist
        painted = model.decode(posterior.sample(generator)).sample.float()
    return painted, posterior.kl().mean() / posterior.mean[0].numel()


def train_autoencoder(composer: Composer, config: AutoencoderConfig, path: Path) -> "AutoencoderKL":
    """Train the autoencoder, or continue from the checkpoint at `path`.

    Args:
        composer: Source of the training pictures.
        config: Shape and training.
        path: Path of the checkpoint, which is written every few minutes and at the end.
    """
    torch.manual_seed(config.seed)
    model = build_autoencoder(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=0.0
    )
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    start = load_checkpoint(path, state)
    rank, world = rank_and_world()
    clock = Clock(config.num_steps, config.batch_size, start)
    num_joint = config.num_steps - config.num_decoder_steps
    for step in range(start, config.num_steps):
        # With a generator per step, a resumed training sees the same data as an undisturbed one.
        rng = np.random.default_rng([config.seed, 2, step, rank])
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * world + rank)
        pictures = composer.sample(config.batch_size // world, rng).pictures
        if step < config.num_crop_steps:
            pictures = crop(pictures, rng)
        real = to_tensor(pictures)
        painted, divergence = reconstruct(model, real, generator, step >= num_joint)
        error = F.mse_loss(painted, real)
        loss = error + config.edge_weight * edge_loss(painted, real) + config.kl_weight * divergence
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, num_joint, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if clock.tick(error.item()):
            log.info("autoencoder %s, mse %.4f, kl %.2f", clock, clock.mean, divergence.item())
        if clock.should_save():
            save_checkpoint(path, state, step + 1)
    save_checkpoint(path, state, config.num_steps)
    return model.eval()


def _learning_rate(step: int, num_joint: int, config: AutoencoderConfig) -> float:
    if step < num_joint:
        return cosine_rate(step, num_joint, 100, config.learning_rate)
    return cosine_rate(step - num_joint, config.num_decoder_steps, 100, config.learning_rate)
