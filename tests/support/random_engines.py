"""Small engines, and what to paint with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transforms.engines.image.base import GeneratorConfig
from transforms.engines.image.models import find_model

if TYPE_CHECKING:
    from transforms.engines.image.diffusers import DiffusersEngine

BATCH_SIZE = 6
TEXTS = ["a red cat", "two dogs", "a red cat", "a house by the sea", "", "cat"]
SEEDS = [7, 8, 9, 2**62, 0, 7]


def load_from(folder: Path, **changes: Any) -> "DiffusersEngine":
    """An engine that paints 32x32 in three steps, with other settings where `changes` says so."""
    from transforms.engines.image.diffusers import DiffusersSpec

    fields = {"num_steps": 3, "size": 32, "stored_size": 32, "batch_size": BATCH_SIZE}
    return DiffusersSpec(find_model(str(folder)), GeneratorConfig(**fields | changes)).load()
