"""Any text-to-image pipeline of diffusers (paper, section 3.2: Stable Diffusion 1.5).

Differences from calling the pipeline with captions, and their reasons:

- The initial noise comes from one CPU generator per image, and batches have one fixed shape. So an
  image depends on its caption and seed only, not on its neighbours, its position or its worker.
  (torch uses the low 32 bits of a seed, so two images of a large run may share their noise; under
  different captions this is not visible.)
- A caption is encoded once for all its images, and the negative prompt once.
- Images are scaled down on the device, before they are copied to the host.
- A batch that does not fit the device's memory is halved, and so are all later ones. The noise
  stays the same, and the images are equal up to rounding: kernels may add in another order.

Pipelines that `prompt_encoder.EMBEDDINGS` does not list get the captions and the generators of the
noise; they encode a caption again for each of its images.
"""

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from transforms.core.config import no_fingerprint
from transforms.core.counters import Count
from transforms.core.errors import ConfigError
from transforms.engines.image.base import GeneratorConfig, ImageEngineConfig, Painted
from transforms.engines.image.diffusers_pipeline import (
    compile_networks,
    decode_one_by_one,
    denoiser,
    load_pipeline,
    set_channels_last,
)
from transforms.engines.image.models import find_image_model
from transforms.engines.image.prompt_encoder import EMBEDDINGS, PromptEncoder
from transforms.engines.model_refs import FindBuiltin, Model, loading

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class DiffusersConfig(ImageEngineConfig):
    """diffusers: runs the model in the workers."""

    libraries: ClassVar[tuple[str, ...]] = ("diffusers", "torch", "transformers")
    name: Literal["diffusers"] = "diffusers"
    """Run the model with diffusers in the workers."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to paint; a device that is missing is an error."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and activations."""
    batch_size: PositiveInt = 64
    """Images painted together. All batches have this shape: a short one is filled up."""
    vae_slicing: bool = False
    """Decode images one by one: needs less memory, so that a larger batch fits."""
    channels_last: bool = False
    """Memory layout of the convolutions; faster on GPUs at half precision."""
    compile: bool = False
    """Compile the networks with `torch.compile`: minutes at the start, faster from then on."""
    compile_cache: str | None = no_fingerprint(None)
    """Folder for compiled kernels, which the next start uses again; null takes torch's own."""

    def find_model(self, name: str, revision: str | None, find_builtin: FindBuiltin) -> Model:
        """Look the model up by its built-in name, folder or hub id."""
        return find_image_model(name, revision, find_builtin)

    def open(self, model: Model, generator: GeneratorConfig) -> "DiffusersEngine":
        """Load the model on the configured device."""
        with loading(model):
            return DiffusersEngine(model, self, generator)

    def check_device(self) -> None:
        """Check that torch can use the configured device.

        Raises:
            ConfigError: It cannot.
        """
        if self.device == "cpu":
            # Read when torch is imported. Actively waiting threads double a busy machine's work.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "key 'engine.device' has value 'cuda', but this machine has no CUDA device that "
                "torch can use: expected 'cpu' here"
            )

    def settings(self) -> dict[str, Any]:
        """Return what changes the images; without the name, which old runs do not have either."""
        return {key: value for key, value in super().settings().items() if key != "engine"}

    def seed_settings(self) -> dict[str, Any]:
        """Return the type: on another device or in other batches, images have the same seeds."""
        return {"dtype": self.dtype}


class DiffusersEngine:
    """A loaded pipeline."""

    def __init__(self, model: Model, config: DiffusersConfig, generator: GeneratorConfig) -> None:
        """Load the model.

        Args:
            model: The model to load.
            config: Where and how to run it.
            generator: Which images to paint.

        Raises:
            ConfigError: The device is missing, or the model cannot paint as configured.
        """
        config.check_device()
        import torch

        self.batch_size = config.batch_size
        self._generator = generator
        self._device = torch.device(config.device)
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._pipeline = load_pipeline(model, generator, self._dtype)
        self._pipeline.to(config.device)
        if config.vae_slicing:
            decode_one_by_one(self._pipeline, model)
        if config.channels_last:
            set_channels_last(self._pipeline)
        if config.compile:
            compile_networks(self._pipeline, config.compile_cache)
        self._encoder: PromptEncoder | None = None
        if type(self._pipeline).__name__ in EMBEDDINGS:
            self._latent_shape = _latent_shape(self._pipeline, model, generator)
            negative_prompt = generator.negative_prompt if generator.guidance > 1 else None
            with torch.inference_mode():
                self._encoder = PromptEncoder(
                    self._pipeline, self._device, negative_prompt, config.batch_size
                )

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Paint one image per text and seed; see `ImageEngine.paint`."""
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
            # Outside of the handler, where the exception no longer holds the batch in memory.
            torch.cuda.empty_cache()
            self.batch_size = -(-self.batch_size // 2)
            log.warning(
                "a batch did not fit the device's memory: continuing with batches of %d; set "
                "engine.batch_size to that from the start",
                self.batch_size,
            )
        rejects = [reject for part in parts for reject in part.rejects]
        return Painted(np.concatenate([part.pixels for part in parts]), tuple(rejects))

    def _paint(self, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Paint at most one batch."""
        import torch

        padding = self.batch_size - len(texts)
        # Any caption can fill the batch up; the first one is encoded anyway.
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
        """Return images [N, H, W, 3] uint8, which of them are finite [N], and which flagged [N]."""
        import torch

        config = self._generator
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        output = self._pipeline(
            **self._subject(texts, generators),
            # For pipelines that draw their own noise, and for samplers that add noise at each step.
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
        """Return what to paint, as arguments of the pipeline."""
        import torch

        if self._encoder is None:
            negative = self._generator.negative_prompt
            return {
                "prompt": list(texts),
                **({"negative_prompt": [negative] * len(texts)} if negative else {}),
            }
        # Always drawn in float32, so that models of all types get the same noise.
        noise = torch.stack([torch.randn(self._latent_shape, generator=g) for g in generators])
        latents = noise.to(self._device, self._dtype)
        return {**self._encoder.encode(texts), "latents": latents}


def _latent_shape(pipeline: Any, model: Model, generator: GeneratorConfig) -> tuple[int, int, int]:
    """Return channels, height and width of the latents of an image."""
    network = denoiser(pipeline)
    factor = int(pipeline.vae_scale_factor)
    multiple = factor * int(network.config.get("patch_size", 1))
    if generator.size % multiple:
        raise ConfigError(
            f"key 'generator.size' has value {generator.size}: expected a multiple of {multiple}, "
            f"which the networks of {model.name} need"
        )
    side = generator.size // factor
    return int(network.config.in_channels), side, side
