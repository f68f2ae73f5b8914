"""The image engines. To add one, write its module and add its config class to `ENGINES`."""

from typing import TYPE_CHECKING

from transforms.core.config import one_of
from transforms.engines.image import diffusers
from transforms.engines.image.base import ImageEngineConfig

ENGINES: tuple[type[ImageEngineConfig], ...] = (diffusers.DiffusersConfig,)
"""Config classes of all image engines; the first one is the default."""

if TYPE_CHECKING:
    AnyImageEngineConfig = ImageEngineConfig
else:
    AnyImageEngineConfig = one_of(ENGINES)
"""Type of a config field `engine`: one of `ENGINES`, chosen by its `name`."""

DEFAULT_ENGINE: ImageEngineConfig = ENGINES[0].model_validate({})
"""The default engine with its default settings."""
