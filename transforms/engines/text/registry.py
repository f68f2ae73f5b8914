"""The text engines. To add one, write its module and add its config class to `ENGINES`."""

from typing import TYPE_CHECKING

from transforms.core.config import one_of
from transforms.engines.text import openai, vllm
from transforms.engines.text.base import TextEngineConfig

ENGINES: tuple[type[TextEngineConfig], ...] = (
    vllm.VllmConfig,
    openai.OpenAIConfig,
)
"""Config classes of all text engines; the first one is the default."""

if TYPE_CHECKING:
    AnyTextEngineConfig = TextEngineConfig
else:
    AnyTextEngineConfig = one_of(ENGINES)
"""Type of a config field `engine`: one of `ENGINES`, chosen by its `name`."""

DEFAULT_ENGINE: TextEngineConfig = ENGINES[0].model_validate({})
"""The default engine with its default settings."""
