"""tiny-sd's diffusion networks and noise schedule.

The UNet is diffusers' `UNet2DConditionModel` on 8x8x16 latents. The caption enters twice: pooled,
through the time embedding of every block (`addition_embed_type="text"`, which the plain pipeline
supports), and by cross-attention at 4x4.
"""

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from pipelines.tiny_sd.text_encoder import Reader, TextConfig, build_text_encoder

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTokenizer


class DiffusionConfig(BaseModel):
    """Shape and training of the UNet."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    channels: tuple[int, int] = (96, 128)
    """Channels at 8x8 and at 4x4."""
    layers_per_block: int = 2
    """Residual blocks per level."""
    time_width: int = 192
    """Width of the time embedding."""
    num_cached: int = 96_000
    """Number of composites that are encoded before the training, which draws from them."""
    num_steps: int = 26_000
    """Training steps."""
    num_first_steps: int = 11_000
    """First of these steps, on the first wave of concepts only."""
    second_share: float = 0.7
    """Share of pictures that show the second wave, after these first steps."""
    decay_steps: int = 5_000
    """Last steps, during which the learning rate falls linearly to zero."""
    batch_size: int = 64
    """Latents per step."""
    learning_rate: float = 1e-3
    """AdamW's learning rate, after 200 steps of warm-up at the start of each wave."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    snr_limit: float = 5.0
    """Gamma of the min-SNR weights."""
    reader_weight: float = 0.1
    """Weight of the loss of the two heads on the text encoder."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights, per step."""
    seed: int = 0
    """Seed of the weights, the composites, the captions and the noise."""


def build_unet(
    config: DiffusionConfig, text: TextConfig, latent_channels: int
) -> "UNet2DConditionModel":
    """Return an untrained UNet whose pooling of the caption is fixed to a plain mean.

    A trained attention would saturate: for some concepts, it attends to the start token alone,
    whose vector is the same for all captions, and from there no gradient leads back.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
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
    for parameter in unet.add_embedding.pool.q_proj.parameters():
        nn.init.zeros_(parameter).requires_grad_(False)
    return unet


def build_scheduler() -> "DDIMScheduler":
    """Return the noise schedule with its sampler."""
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
    """Networks of the diffusion training: UNet, text encoder, and the heads on the text encoder."""

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
        # At this size, plain attention takes half the time of the fused kernel on a CPU.
        self.text_encoder.set_attn_implementation("eager")
        self.unet.set_attn_processor(AttnProcessor())
