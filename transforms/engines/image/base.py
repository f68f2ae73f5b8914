"""Text-to-image models behind one interface, and the settings that they share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from transforms.core.config import Config, fingerprint_fields, no_fingerprint
from transforms.core.counters import Count
from transforms.engines.model_refs import FindBuiltin, Model

Pixels = NDArray[np.uint8]


class GeneratorConfig(Config):
    """Which images are painted, whatever the engine (paper, section 3.2)."""

    num_steps: PositiveInt = 50
    """Denoising steps (authors' code: 50)."""
    guidance: Annotated[float, Field(ge=1)] = 2.5
    """Scale of classifier-free guidance (paper: 2.5). 1 turns it off, which halves the work."""
    negative_prompt: str = ""
    """Prompt that guidance moves away from (authors' code: empty)."""
    scheduler: Literal["ddim", "dpm++", "unipc", "euler", "euler-a", "model"] = "ddim"
    """Sampler: `ddim` (authors' code); one that needs fewer steps, 15 to 25 with `dpm++` or
    `unipc`; or `model`, the one that the model's folder names."""
    size: Annotated[int, Field(gt=0, multiple_of=8)] = 512
    """Side of an image as painted, in pixels (authors' code: 512)."""
    stored_size: PositiveInt = 256
    """Side of an image as stored, in pixels (authors' code: 256)."""
    safety_checker: bool = False
    """Run the model's own checker on every image; an image that it flags is painted again."""

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
    """The images of one batch.

    Attributes:
        pixels: [N, H, W, 3], one image per text, in the order of the texts.
        rejects: Per image the reason why the engine calls it unusable; None for a good image.
    """

    pixels: Pixels
    rejects: tuple[Count | None, ...]


class ImageEngine(Protocol):
    """A loaded text-to-image model."""

    batch_size: int
    """Number of images that one call should paint; an engine that runs out of memory lowers it."""

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Paint one image per text and seed; an image depends on its own text and seed only.

        Args:
            texts: Captions, ideally `batch_size`; a caption is repeated for each of its images.
            seeds: One seed per text.

        Raises:
            Exception: Anything that the model raises.
        """


class ImageEngineConfig(Config):
    """Section `engine` of an images config: an image engine and its settings.

    A subclass registers an engine: it has a `name` that is a `Literal`, its own settings, and these
    methods. Importing its module must be quick, so heavy packages are imported in the methods.
    """

    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages of `fingerprint.PACKAGES` whose versions may change the images."""
    name: str
    """Name of the engine."""
    batch_timeout_s: PositiveFloat = no_fingerprint(1800.0)
    """Time limit for one batch, in seconds, compilation included. An engine that takes longer
    hangs, and its process ends."""

    @abstractmethod
    def find_model(self, name: str, revision: str | None, find_builtin: FindBuiltin) -> Model:
        """Look a model up and compute its identity, without loading it.

        Args:
            name: The `model` of the config.
            revision: Branch, tag or commit of a hub id.
            find_builtin: Finds the folder of a built-in model.

        Raises:
            ConfigError: There is no such model.
        """

    @abstractmethod
    def open(self, model: Model, generator: GeneratorConfig) -> ImageEngine:
        """Load a model that `find_model` has found."""

    def check_device(self) -> None:
        """Check that this machine has the device that the engine needs.

        Raises:
            ConfigError: The device is missing.
        """

    def settings(self) -> dict[str, Any]:
        """Return what changes the images: part of the fingerprint, and stored with every image."""
        fields = fingerprint_fields(self)
        return {"engine": fields.pop("name"), **fields}

    def seed_settings(self) -> dict[str, Any]:
        """Return those settings that change the seeds of the images, too."""
        return {"engine": self.name}


@dataclass(frozen=True)
class ImageEngineSpec:
    """All that a worker needs to open an image engine. It pickles and is small."""

    model: Model
    config: ImageEngineConfig
    generator: GeneratorConfig

    def open(self) -> ImageEngine:
        """Load the model."""
        return self.config.open(self.model, self.generator)
