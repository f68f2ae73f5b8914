"""Latents: encoded pictures, standardised and cached for the diffusion training."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.tiny_sd.autoencoder import to_tensor
from pipelines.tiny_sd.composites import Composer
from pipelines.tiny_sd.training import half_precision, rank_and_world

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@torch.no_grad()
def encode(model: "AutoencoderKL", pictures: NDArray[np.uint8], batch_size: int = 128) -> Tensor:
    """Encode uint8 pictures [N, 64, 64, 3] into latent means [N, C, 8, 8], half precision."""
    latents = []
    for begin in range(0, len(pictures), batch_size):
        with half_precision():
            means = model.encode(to_tensor(pictures[begin : begin + batch_size])).latent_dist.mean
        latents.append(means.half())
    return torch.cat(latents)


@torch.no_grad()
def standardise_latents(model: "AutoencoderKL", composer: Composer) -> tuple[Tensor, Tensor]:
    """Fold a per-channel standardisation of the latents into the 1x1 convolutions, in place.

    Afterwards the latents have mean 0 and standard deviation 1 in every channel, so a
    `scaling_factor` of 1 fits all of them.

    Args:
        model: A trained autoencoder, changed in place.
        composer: Source of the pictures whose latents are measured.

    Returns:
        Mean and standard deviation per channel [C] before the change.
    """
    pictures = composer.sample(1024, np.random.default_rng(6)).pictures
    latents = encode(model, pictures)
    mean = latents.float().mean(dim=(0, 2, 3))
    deviation = latents.float().std(dim=(0, 2, 3))
    channels = len(mean)
    encoder_conv, decoder_conv = model.quant_conv, model.post_quant_conv
    encoder_conv.weight[:channels] /= deviation[:, None, None, None]
    encoder_conv.bias[:channels] = (encoder_conv.bias[:channels] - mean) / deviation
    encoder_conv.bias[channels:] -= 2 * deviation.log()
    decoder_conv.bias += decoder_conv.weight[:, :, 0, 0] @ mean
    decoder_conv.weight *= deviation[None, :, None, None]
    return mean, deviation


class LatentCache:
    """Latents of composites with their concepts and backgrounds."""

    def __init__(
        self, autoencoder: "AutoencoderKL", composer: Composer, num_cached: int, seed: int
    ) -> None:
        """Compose and encode this process's share of `num_cached` pictures, as many per concept."""
        rank, world = rank_and_world()
        num_cached //= world
        rng = np.random.default_rng([seed, 4, rank])
        latents, concepts, backgrounds = [], [], []
        for begin in range(0, num_cached, 2048):
            size = min(2048, num_cached - begin)
            wanted = np.arange(begin, begin + size) % len(composer.concepts)
            batch = composer.sample(size, rng, wanted)
            latents.append(encode(autoencoder, batch.pictures))
            concepts.append(batch.concepts)
            backgrounds.append(batch.backgrounds)
        self.latents = torch.cat(latents)  # [N, C, 8, 8], half
        self.concepts = np.concatenate(concepts)
        self.backgrounds = np.concatenate(backgrounds)
