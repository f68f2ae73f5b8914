"""tiny-sd's diffusion: the UNet and the text encoder, trained together on cached latents.

The target is v (Salimans and Ho, 2022) on a schedule with zero terminal signal-to-noise ratio
(Lin et al., 2024) and min-SNR weights (Hang et al., 2023). Two linear heads predict the concept and
the background from the text encoder's output, which teaches it quickly which words matter.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.tiny_sd.captions import UNNAMED, write_caption
from pipelines.tiny_sd.latents import LatentCache
from pipelines.tiny_sd.networks import DiffusionConfig, Networks, build_scheduler
from pipelines.tiny_sd.scenes import BACKGROUNDS
from pipelines.tiny_sd.text_encoder import TextConfig, tokenize
from pipelines.tiny_sd.training import (
    Clock,
    average_gradients,
    half_precision,
    load_checkpoint,
    rank_and_world,
    save_checkpoint,
)

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTokenizer

log = logging.getLogger(__name__)


def diffusion_loss(
    unet: "UNet2DConditionModel",
    latents: Tensor,
    hidden: Tensor,
    alphas: Tensor,
    snr_limit: float,
    generator: torch.Generator,
) -> Tensor:
    """Return the min-SNR weighted squared error of the predicted v.

    Args:
        unet: Network that predicts v.
        latents: Clean latents [N, C, 8, 8].
        hidden: Output of the text encoder [N, T, width].
        alphas: Cumulative products of the schedule [1000].
        snr_limit: Gamma of the weights.
        generator: Random generator of times and noise.
    """
    times = torch.randint(len(alphas), (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = alphas[times]
    signal, spread = (a.sqrt()[:, None, None, None] for a in (alpha, 1 - alpha))
    with half_precision():
        predicted = unet(signal * latents + spread * noise, times, hidden).sample
    target = signal * noise - spread * latents
    # min(SNR, gamma) / (SNR + 1) with SNR = alpha / (1 - alpha), in a form without 0 / 0.
    weight = torch.minimum(alpha, snr_limit * (1 - alpha)).clamp(min=1e-2)
    errors = F.mse_loss(predicted.float(), target, reduction="none").mean(dim=(1, 2, 3))
    return (weight * errors).mean()


@dataclass(frozen=True)
class Batch:
    """Latents with their captions, and the concepts and backgrounds that the captions name."""

    latents: Tensor  # [N, C, 8, 8]
    texts: list[str]
    concepts: Tensor  # [N], -100 (not scored) where the caption is empty
    backgrounds: Tensor  # [N], UNNAMED where the caption names none


def draw_batch(
    cache: LatentCache,
    concepts: list[str],
    size: int,
    rng: np.random.Generator,
    num_first: int,
    second_share: float,
) -> Batch:
    """Draw cached latents and write a fresh caption for each.

    Args:
        cache: Encoded composites.
        concepts: Names by concept index.
        size: Size of the batch.
        rng: Random generator of the batch.
        num_first: Number of concepts of the first wave, which come first.
        second_share: Share of the batch that shows other concepts.
    """
    is_second = cache.concepts >= num_first
    num_second = round(second_share * size)
    picked = np.concatenate(
        [
            rng.choice(np.flatnonzero(~is_second), size - num_second),
            rng.choice(np.flatnonzero(is_second), num_second) if num_second else [],
        ]
    ).astype(int)
    shown, backgrounds = cache.concepts[picked], cache.backgrounds[picked]
    captions = [
        write_caption(concepts[c], BACKGROUNDS[b], rng)
        for c, b in zip(shown, backgrounds, strict=True)
    ]
    named = np.array([c.names_background for c in captions])
    return Batch(
        cache.latents[picked].float(),
        [c.text for c in captions],
        torch.from_numpy(np.where([c.text != "" for c in captions], shown, -100)),
        torch.from_numpy(np.where(named, backgrounds, UNNAMED)),
    )


def losses(
    networks: Networks,
    tokenizer: "CLIPTokenizer",
    batch: Batch,
    alphas: Tensor,
    snr_limit: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the denoising loss and the loss of the heads on the text encoder."""
    with half_precision():
        hidden = networks.text_encoder(tokenize(tokenizer, batch.texts)).last_hidden_state
        concepts, backgrounds = networks.reader(hidden)
    reading = F.cross_entropy(concepts.float(), batch.concepts)
    reading = reading + F.cross_entropy(backgrounds.float(), batch.backgrounds)
    denoising = diffusion_loss(
        networks.unet, batch.latents, hidden.float(), alphas, snr_limit, generator
    )
    return denoising, reading


def learning_rate(step: int, config: DiffusionConfig) -> float:
    """Return the learning rate: warm-up at the start of each wave, constant, linear to zero."""
    first = config.num_first_steps
    since = step if step < first else step - first
    left = config.num_steps - step
    return config.learning_rate * min(1.0, (since + 1) / 200, left / config.decay_steps)


def train_diffusion(
    cache: LatentCache,
    concepts: list[str],
    tokenizer: "CLIPTokenizer",
    config: DiffusionConfig,
    text: TextConfig,
    path: Path,
    num_first: int,
) -> Networks:
    """Train the networks, or continue from the checkpoint at `path`.

    Args:
        cache: Encoded composites.
        concepts: Names by concept index, the first wave first.
        tokenizer: Tokenizer of the captions.
        config: Shape and training.
        text: Shape of the text encoder.
        path: Path of the checkpoint, which is written every few minutes and at the end.
        num_first: Number of concepts of the first wave.

    Returns:
        The networks with averaged (EMA) weights.
    """
    networks = Networks(tokenizer, len(concepts), config, text, cache.latents.shape[1])
    averaged = copy.deepcopy(networks).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        networks.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay
    )
    state: dict[str, Any] = {"model": networks, "ema": averaged, "optimizer": optimizer}
    start = load_checkpoint(path, state)
    alphas = build_scheduler().alphas_cumprod
    rank, world = rank_and_world()
    clock = Clock(config.num_steps, config.batch_size, start)
    for step in range(start, config.num_steps):
        # With a generator per step, a resumed training sees the same data as an undisturbed one.
        rng = np.random.default_rng([config.seed, 5, step, rank])
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * world + rank)
        share = config.second_share if step >= config.num_first_steps else 0.0
        batch = draw_batch(cache, concepts, config.batch_size // world, rng, num_first, share)
        denoising, reading = losses(networks, tokenizer, batch, alphas, config.snr_limit, generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.zero_grad(set_to_none=True)
        (denoising + config.reader_weight * reading).backward()
        average_gradients(networks)
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        update_average(averaged, networks, min(config.ema_decay, (1 + step) / (10 + step)))
        if clock.tick(denoising.item()):
            log.info("diffusion %s, loss %.4f, reading %.3f", clock, clock.mean, reading.item())
        if clock.should_save():
            save_checkpoint(path, state, step + 1)
    save_checkpoint(path, state, config.num_steps)
    return averaged.eval()


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move every weight of `averaged` towards `model` by 1 - decay, in place."""
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
