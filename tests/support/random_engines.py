"""Small engines with random weights, and inputs for them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transforms.engines.image.base import GeneratorConfig
from transforms.engines.image.diffusers import DiffusersConfig

if TYPE_CHECKING:
    from transforms.engines.image.diffusers import DiffusersEngine

BATCH_SIZE = 6
TEXTS = ["a red cat", "two dogs", "a red cat", "a house by the sea", "", "cat"]
SEEDS = [7, 8, 9, 2**62, 0, 7]


def load_from(folder: Path, **changes: Any) -> "DiffusersEngine":
    """Return an engine that paints 32x32 pixels in three steps; `changes` are other settings."""
    config: dict[str, Any] = {"batch_size": BATCH_SIZE}
    generator: dict[str, Any] = {"num_steps": 3, "size": 32, "stored_size": 32}
    for key, value in changes.items():
        section = generator if key in GeneratorConfig.model_fields else config
        section[key] = value
    engine = DiffusersConfig(**config)
    model = engine.find_model(str(folder), None, lambda name: None)
    return engine.open(model, GeneratorConfig(**generator))
