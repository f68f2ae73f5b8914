"""Text-to-image models behind one interface, and the settings that they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from transforms.core.config import Config, no_fingerprint
from transforms.core.counters import Count

Pixels = NDArray[np.uint8]


class GeneratorConfig(Config):
    """How images are painted (paper, section 3.2)."""

    num_steps: PositiveInt = 50
    """Denoising steps; reference: 50."""
    guidance: Annotated[float, Field(ge=1)] = 2.5
    """Classifier-free guidance; paper: 2.5. 1 is none, and then half the work."""
    negative_prompt: str = ""
    """What guidance leads away from; reference: nothing."""
    scheduler: Literal["ddim", "dpm++", "unipc", "euler", "euler-a", "model"] = "ddim"
    """Sampler: DDIM (reference); one that needs fewer steps, 15 to 25 with `dpm++` or `unipc`; or
    the one that the model's folder names."""
    size: Annotated[int, Field(gt=0, multiple_of=8)] = 512
    """Pixels of an image's side as painted; paper: 512."""
    stored_size: PositiveInt = 256
    """Pixels of an image's side as stored; reference: 256."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and activations."""
    batch_size: PositiveInt = 64
    """Images painted together. Every batch has this shape: a short one is filled up."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to paint; a device that is missing is an error."""
    safety_checker: bool = False
    """Let the model's own checker look at every image; one that it flags is painted again."""
    vae_slicing: bool = False
    """Decode images one by one: less memory, so that a larger batch fits."""
    channels_last: bool = False
    """Memory layout of the convolutions; the faster one on GPUs at half precision."""
    compile: bool = False
    """Compile the networks with `torch.compile`: minutes at the start, faster from then on."""
    compile_cache: str | None = no_fingerprint(None)
    """Folder for what was compiled, to be found by the next start; default: torch's own."""
    batch_timeout_s: PositiveFloat = no_fingerprint(1800.0)
    """Longest time for a batch, the first one's compilation included, in seconds; an engine that
    takes longer hangs, and its process ends."""

    @model_validator(mode="after")
    def _check(self) -> "GeneratorConfig":
        if self.negative_prompt and self.guidance == 1:
            raise ValueError(
                f"generator.negative_prompt is {self.negative_prompt!r}, which has no effect "
                "without guidance: expected generator.guidance above 1"
            )
        if self.stored_size > self.size:
            raise ValueError(
                f"generator.stored_size is {self.stored_size}: expected at most generator.size, "
                f"which is {self.size}"
            )
        return self


@dataclass(frozen=True)
class Painted:
    """A batch as an engine gives it back.

    Attributes:
        pixels: [N, H, W, 3], one image per text, in the order of the texts.
        rejects: Per image why the engine itself calls it unusable; None for a good one.
    """

    pixels: Pixels
    rejects: tuple[Count | None, ...]


class ImageEngine(Protocol):
    """A loaded text-to-image model."""

    batch_size: int
    """Images that one call paints best; an engine that runs out of memory lowers it."""

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """One image per text and seed; an image depends on its own text and seed only.

        Args:
            texts: Captions, `batch_size` at best; a caption stands there once per image.
            seeds: As many.

        Raises:
            Exception: Anything that the model raises.
        """


class ImageEngineSpec(Protocol):
    """What it takes to load an engine on a worker: picklable, and small."""

    def load(self) -> ImageEngine:
        """Load the model."""
