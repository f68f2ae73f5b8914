"""Stable Diffusion through diffusers' own `StableDiffusionPipeline` (paper, section 3.2).

What is different from calling the pipeline with captions, and why:

- the initial noise comes from one CPU generator per image, and batches have one fixed shape, so an
  image depends on its caption and seed only, not on its neighbours, its place or its worker (torch
  uses the low 32 bits of a seed, so two of a run's many images may share their noise: under
  different captions that shows nowhere);
- captions are encoded once for all their images, and the empty caption of guidance once;
- images are scaled down on the device, before they are copied to the host.

The safety checker is not loaded. Only safetensors are read, and nothing of a model's repository is
executed.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transforms.core.config import ConfigError
from transforms.core.counters import Count
from transforms.engines.image import GeneratorConfig, Painted
from transforms.engines.image_models import ImageModel

if TYPE_CHECKING:
    import torch

TEXT_BATCH_SIZE = 8
"""Captions encoded together, always as many: the shape must not depend on the neighbours."""

_TEXTS_KEPT = 256


@dataclass(frozen=True)
class DiffusersSpec:
    """A diffusers model and how to paint with it."""

    model: ImageModel
    config: GeneratorConfig

    def load(self) -> "DiffusersEngine":
        """Load the model on the configured device."""
        return DiffusersEngine(self.model, self.config)


def check_device(device: str) -> None:
    """Make sure that the configured accelerator is there.

    Raises:
        ConfigError: It is not.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "key 'generator.device' has value 'cuda', but this machine has no CUDA device that "
            "torch can use: expected 'cpu' here"
        )


class DiffusersEngine:
    """A loaded Stable Diffusion."""

    def __init__(self, model: ImageModel, config: GeneratorConfig) -> None:
        """Load the model.

        Args:
            model: What to load.
            config: How to paint.

        Raises:
            ConfigError: The device is missing, or the model cannot paint as configured.
        """
        import torch

        check_device(config.device)
        self.batch_size = config.batch_size
        self._config = config
        self._device = torch.device(config.device)
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._pipeline = _load_pipeline(model, config, self._dtype)
        factor = int(self._pipeline.vae_scale_factor)
        if config.size % factor:
            raise ConfigError(
                f"key 'generator.size' has value {config.size}: expected a multiple of {factor}, "
                f"the factor of {model.name}'s autoencoder"
            )
        side = config.size // factor
        self._latent_shape = (int(self._pipeline.unet.config.in_channels), side, side)
        self._embeddings: OrderedDict[str, torch.Tensor] = OrderedDict()

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """As `ImageEngine.paint`."""
        import torch

        assert len(texts) == len(seeds) <= self.batch_size
        padding = self.batch_size - len(texts)
        # Any caption will do as a filler; the first one is encoded anyway.
        texts, seeds = [*texts, *[texts[0]] * padding], [*seeds, *[0] * padding]
        with torch.inference_mode():
            pixels, finite = self._sample(texts, seeds)
        kept = self.batch_size - padding
        rejects = tuple(None if good else Count.IMAGE_NOT_FINITE for good in finite[:kept].tolist())
        return Painted(pixels[:kept].numpy(), rejects)

    def _sample(
        self, texts: Sequence[str], seeds: Sequence[int]
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Images [N, H, W, 3] uint8 and whether each is finite [N], both on the host."""
        import torch

        config = self._config
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(self._latent_shape, generator=g) for g in generators])
        embeddings = self._encode(texts)
        without = self._encode([""]).expand_as(embeddings) if config.guidance > 1 else None
        images = self._pipeline(
            prompt_embeds=embeddings,
            negative_prompt_embeds=without,
            latents=noise.to(self._device, self._dtype),
            # For samplers that add noise on the way; DDIM draws none.
            generator=generators,
            num_inference_steps=config.num_steps,
            guidance_scale=config.guidance,
            height=config.size,
            width=config.size,
            output_type="pt",
        ).images.float()
        finite = images.isfinite().all(dim=(1, 2, 3))
        images = images.nan_to_num()
        if config.stored_size != config.size:
            size = (config.stored_size, config.stored_size)
            images = torch.nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu(), finite.cpu()

    def _encode(self, texts: Sequence[str]) -> "torch.Tensor":
        """Embeddings [N, L, D] of captions, from the cache where they are known."""
        import torch

        new = [text for text in dict.fromkeys(texts) if text not in self._embeddings]
        for start in range(0, len(new), TEXT_BATCH_SIZE):
            part = new[start : start + TEXT_BATCH_SIZE]
            filled = part + [""] * (TEXT_BATCH_SIZE - len(part))
            encoded, _ = self._pipeline.encode_prompt(filled, self._device, 1, False)
            self._embeddings.update(zip(part, encoded, strict=False))
        stacked = torch.stack([self._embeddings[text] for text in texts])
        for text in dict.fromkeys(texts):
            self._embeddings.move_to_end(text)
        while len(self._embeddings) > max(_TEXTS_KEPT, self.batch_size):
            self._embeddings.popitem(last=False)
        return stacked


def _load_pipeline(model: ImageModel, config: GeneratorConfig, dtype: "torch.dtype") -> Any:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        model.source(),
        revision=model.commit,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=model.commit is None,
        safety_checker=None,
        requires_safety_checker=False,
    )
    if config.scheduler == "ddim":
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(config.device)
