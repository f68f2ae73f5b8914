"""Any text-to-image pipeline of diffusers (paper, section 3.2: Stable Diffusion 1.5).

What is different from calling the pipeline with captions, and why:

- the initial noise comes from one CPU generator per image, and batches have one fixed shape, so an
  image depends on its caption and seed only, not on its neighbours, its place or its worker (torch
  uses the low 32 bits of a seed, so two of a run's many images may share their noise: under
  different captions that shows nowhere);
- captions are encoded once for all their images, and the negative prompt of guidance once;
- images are scaled down on the device, before they are copied to the host;
- a batch that does not fit the device's memory is halved, and so are all after it. The noise is the
  same then, and so is the image but for rounding: kernels may add up in another order.

Pipelines that `caption_encoder.EMBEDDINGS` does not list are given the captions themselves, and the
generators to draw their noise from; they encode a caption again for each of its images.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.core.counters import Count
from transforms.core.errors import ConfigError
from transforms.engines.image.base import GeneratorConfig, Painted
from transforms.engines.image.diffusers_pipeline import denoiser, load_pipeline
from transforms.engines.image.models import ImageModel
from transforms.engines.image.prompt_encoder import EMBEDDINGS, CaptionEncoder
from transforms.engines.model_refs import loading

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiffusersSpec:
    """A diffusers model and how to paint with it."""

    model: ImageModel
    config: GeneratorConfig

    def load(self) -> "DiffusersEngine":
        """Load the model on the configured device."""
        with loading(self.model):
            return DiffusersEngine(self.model, self.config)


def check_device(device: str) -> None:
    """Make sure that the configured accelerator is there.

    Raises:
        ConfigError: It is not.
    """
    if device == "cpu":
        # Read when torch is imported. Threads that wait actively double the work of a busy machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "key 'generator.device' has value 'cuda', but this machine has no CUDA device that "
            "torch can use: expected 'cpu' here"
        )


class DiffusersEngine:
    """A loaded pipeline."""

    def __init__(self, model: ImageModel, config: GeneratorConfig) -> None:
        """Load the model.

        Args:
            model: What to load.
            config: How to paint.

        Raises:
            ConfigError: The device is missing, or the model cannot paint as configured.
        """
        check_device(config.device)
        import torch

        self.batch_size = config.batch_size
        self._config = config
        self._device = torch.device(config.device)
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._pipeline = load_pipeline(model, config, self._dtype)
        self._encoder: CaptionEncoder | None = None
        if type(self._pipeline).__name__ in EMBEDDINGS:
            self._latent_shape = _latent_shape(self._pipeline, model, config)
            negative_prompt = config.negative_prompt if config.guidance > 1 else None
            with torch.inference_mode():
                self._encoder = CaptionEncoder(
                    self._pipeline, self._device, negative_prompt, config.batch_size
                )

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """As `ImageEngine.paint`."""
        import torch

        parts: list[Painted] = []
        done = 0
        while done < len(texts):
            part = slice(done, done + self.batch_size)
            try:
                parts.append(self._paint(texts[part], seeds[part]))
                done += len(texts[part])
                continue
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
            # Out here, where the exception no longer holds the batch in memory.
            torch.cuda.empty_cache()
            self.batch_size = -(-self.batch_size // 2)
            log.warning(
                "a batch did not fit the device's memory: going on with batches of %d; set "
                "generator.batch_size so from the start",
                self.batch_size,
            )
        rejects = [reject for part in parts for reject in part.rejects]
        return Painted(np.concatenate([part.pixels for part in parts]), tuple(rejects))

    def _paint(self, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """As `paint`, for at most one batch."""
        import torch

        padding = self.batch_size - len(texts)
        # Any caption will do as a filler; the first one is encoded anyway.
        filled = [*texts, *[texts[0]] * padding]
        with torch.inference_mode():
            pixels, finite, flagged = self._sample(filled, [*seeds, *[0] * padding])
        rejects = [
            Count.IMAGE_NOT_FINITE if not good else Count.IMAGE_FLAGGED if flag else None
            for good, flag in zip(finite.tolist(), flagged, strict=True)
        ]
        return Painted(pixels[: len(texts)].numpy(), tuple(rejects[: len(texts)]))

    def _sample(
        self, texts: Sequence[str], seeds: Sequence[int]
    ) -> "tuple[torch.Tensor, torch.Tensor, Sequence[bool]]":
        """Images [N, H, W, 3] uint8, whether each is finite [N] and flagged, all on the host."""
        import torch

        config = self._config
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        output = self._pipeline(
            **self._subject(texts, generators),
            # For pipelines that draw their noise, and for samplers that add some on the way.
            generator=generators,
            num_inference_steps=config.num_steps,
            guidance_scale=config.guidance,
            height=config.size,
            width=config.size,
            output_type="pt",
        )
        flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(texts)
        images = output.images.float()
        finite = images.isfinite().all(dim=(1, 2, 3))
        images = images.nan_to_num()
        if config.stored_size != config.size:
            size = (config.stored_size, config.stored_size)
            images = torch.nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu(), finite.cpu(), flagged

    def _subject(
        self, texts: Sequence[str], generators: "Sequence[torch.Generator]"
    ) -> dict[str, Any]:
        """What to paint, as arguments of the pipeline."""
        import torch

        if self._encoder is None:
            negative = self._config.negative_prompt
            return {
                "prompt": list(texts),
                **({"negative_prompt": [negative] * len(texts)} if negative else {}),
            }
        # Drawn in float32 whatever the type of the model, so that all types share their noise.
        noise = torch.stack([torch.randn(self._latent_shape, generator=g) for g in generators])
        latents = noise.to(self._device, self._dtype)
        return {**self._encoder.encode(texts), "latents": latents}


def _latent_shape(
    pipeline: Any, model: ImageModel, config: GeneratorConfig
) -> tuple[int, int, int]:
    """Channels, height and width of an image before it is decoded."""
    network = denoiser(pipeline)
    factor = int(pipeline.vae_scale_factor)
    multiple = factor * int(network.config.get("patch_size", 1))
    if config.size % multiple:
        raise ConfigError(
            f"key 'generator.size' has value {config.size}: expected a multiple of {multiple}, "
            f"by the networks of {model.name}"
        )
    return int(network.config.in_channels), config.size // factor, config.size // factor
