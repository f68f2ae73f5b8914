"""tiny-sd's diffusion networks and noise schedule.

The UNet is diffusers' `UNet2DConditionModel` on 8x8x16 latents. The caption enters twice: pooled,
through the time embedding of every block (`addition_embed_type="text"`, which the plain pipeline
serves), and by cross-attention at 4x4.
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
    """Composites encoded before training and drawn from during it."""
    num_steps: int = 26_000
    """Training steps."""
    num_first_steps: int = 11_000
    """First of these, on the first wave of concepts alone."""
    second_share: float = 0.7
    """Share of pictures that show the second wave, after the first steps."""
    decay_steps: int = 5_000
    """Last steps, over which the learning rate falls linearly to zero."""
    batch_size: int = 64
    """Latents per step."""
    learning_rate: float = 1e-3
    """AdamW's learning rate after 200 steps of warm-up, at the start of each wave."""
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
    """Make an untrained UNet, whose pooling of the caption is and stays a plain mean.

    A trained attention would saturate: it comes to look at the start token alone for some
    concepts, which has the same vector for all of them, and no gradient leads out of there.
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
    """Make the noise schedule, with the sampler that goes by it."""
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
