"""tiny-sd's diffusion: the UNet and the text encoder, trained together on cached latents.

The UNet is diffusers' `UNet2DConditionModel` on 8x8x16 latents. The caption enters twice: pooled,
through the time embedding of every block (`addition_embed_type="text"`, which the plain pipeline
serves), and by cross-attention at 4x4. The target is v (Salimans and Ho, 2022) on a schedule with
zero terminal signal-to-noise ratio (Lin et al., 2024) and min-SNR weights (Hang et al., 2023). Two
linear heads that read the concept and the background off the text encoder teach it quickly which
words matter.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from pipelines.tiny_sd.captions import UNNAMED, write_caption
from pipelines.tiny_sd.latents import LatentCache
from pipelines.tiny_sd.scenes import BACKGROUNDS
from pipelines.tiny_sd.text_encoder import Reader, TextConfig, build_text_encoder, tokenize
from pipelines.tiny_sd.training import (
    Clock,
    average_gradients,
    load_checkpoint,
    rank_and_world,
    save_checkpoint,
    trapezoid_rate,
)

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTokenizer

logger = logging.getLogger(__name__)


class DiffusionConfig(BaseModel):
    """Shape and training of the UNet."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    channels: tuple[int, int] = (96, 128)
    """Channels at 8x8 and at 4x4."""
    layers_per_block: int = 2
    """Residual blocks per level."""
    time_width: int = 192
    """Width of the time embedding."""
    num_cached: int = 64_000
    """Composites encoded before training and drawn from during it."""
    num_steps: int = 14_000
    """Training steps."""
    decay_steps: int = 4_000
    """Last steps over which the learning rate falls linearly to zero."""
    batch_size: int = 64
    """Latents per step."""
    learning_rate: float = 1e-3
    """AdamW's learning rate after 200 steps of warm-up."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    snr_limit: float = 5.0
    """Gamma of the min-SNR weights."""
    reader_weight: float = 0.1
    """Weight of the two heads that read the text encoder."""
    ema_decay: float = 0.999
    """Decay of the weights' moving average, per step."""
    seed: int = 0
    """Seed of the weights, the composites, the captions and the noise."""


def build_unet(
    config: DiffusionConfig, text: TextConfig, latent_channels: int
) -> "UNet2DConditionModel":
    """Make an untrained UNet."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=text.width,
        attention_head_dim=4,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=config.time_width,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def build_scheduler() -> "DDIMScheduler":
    """Make the noise schedule, which is also the recommended sampler."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


class Networks(nn.Module):
    """All that the diffusion step trains: UNet, text encoder and the text encoder's reader."""

    def __init__(
        self,
        tokenizer: "CLIPTokenizer",
        num_concepts: int,
        config: DiffusionConfig,
        text: TextConfig,
        latent_channels: int,
    ) -> None:
        """Build the untrained networks."""
        from diffusers.models.attention_processor import AttnProcessor

        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer, text)
        torch.manual_seed(config.seed)
        self.unet = build_unet(config, text, latent_channels)
        self.reader = Reader(text.width, num_concepts)
        # On a CPU and at this size plain attention takes half the time of the fused kernel.
        self.text_encoder.set_attn_implementation("eager")
        self.unet.set_attn_processor(AttnProcessor())


def diffusion_loss(
    unet: "UNet2DConditionModel",
    latents: Tensor,
    hidden: Tensor,
    alphas: Tensor,
    snr_limit: float,
    generator: torch.Generator,
) -> Tensor:
    """Min-SNR weighted squared error of the predicted v.

    Args:
        unet: predicts v.
        latents: clean latents [N, C, 8, 8].
        hidden: text encoder's output [N, T, width].
        alphas: cumulative products of the schedule [1000].
        snr_limit: gamma of the weights.
        generator: draws times and noise.
    """
    times = torch.randint(len(alphas), (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = alphas[times]
    signal, spread = (a.sqrt()[:, None, None, None] for a in (alpha, 1 - alpha))
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(signal * latents + spread * noise, times, hidden).sample
    target = signal * noise - spread * latents
    # min(SNR, gamma) / (SNR + 1) with SNR = alpha / (1 - alpha), in a form that is 0 / 0 nowhere.
    weight = torch.minimum(alpha, snr_limit * (1 - alpha)).clamp(min=1e-2)
    errors = F.mse_loss(predicted.float(), target, reduction="none").mean(dim=(1, 2, 3))
    return (weight * errors).mean()


@dataclass(frozen=True)
class Batch:
    """Latents with their captions and what the captions say."""

    latents: Tensor  # [N, C, 8, 8]
    texts: list[str]
    concepts: Tensor  # [N], -100 (not scored) where the caption is empty
    backgrounds: Tensor  # [N], UNNAMED where the caption names none


def draw_batch(
    cache: LatentCache, concepts: list[str], size: int, rng: np.random.Generator
) -> Batch:
    """Draw cached latents and write a fresh caption for each."""
    picked = rng.integers(len(cache.latents), size=size)
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
    """Compute the denoising loss and the loss of the heads that read the caption."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = networks.text_encoder(tokenize(tokenizer, batch.texts)).last_hidden_state
        concepts, backgrounds = networks.reader(hidden)
    reading = F.cross_entropy(concepts.float(), batch.concepts)
    reading = reading + F.cross_entropy(backgrounds.float(), batch.backgrounds)
    denoising = diffusion_loss(
        networks.unet, batch.latents, hidden.float(), alphas, snr_limit, generator
    )
    return denoising, reading


def train_diffusion(
    cache: LatentCache,
    concepts: list[str],
    tokenizer: "CLIPTokenizer",
    config: DiffusionConfig,
    text: TextConfig,
    path: Path,
) -> Networks:
    """Train, or go on from the checkpoint at `path`.

    Returns:
        the networks with averaged (EMA) weights.
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
        # A generator per step makes a resumed run see what an undisturbed one would have seen.
        rng = np.random.default_rng([config.seed, 5, step, rank])
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * world + rank)
        batch = draw_batch(cache, concepts, config.batch_size // world, rng)
        denoising, reading = losses(networks, tokenizer, batch, alphas, config.snr_limit, generator)
        for group in optimizer.param_groups:
            group["lr"] = trapezoid_rate(
                step, config.num_steps, 200, config.decay_steps, config.learning_rate
            )
        optimizer.zero_grad(set_to_none=True)
        (denoising + config.reader_weight * reading).backward()
        average_gradients(networks)
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        update_average(averaged, networks, min(config.ema_decay, (1 + step) / (10 + step)))
        if clock.tick(denoising.item()):
            logger.info("diffusion %s, loss %.4f, reading %.3f", clock, clock.mean, reading.item())
        if clock.should_save():
            save_checkpoint(path, state, step + 1)
    save_checkpoint(path, state, config.num_steps)
    return averaged.eval()


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move every weight of `averaged` towards `model` by 1 - decay, in place."""
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
