"""Engines with random weights, for tests of several modules."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.random_engines import load_from
from tests.support.random_sd import write_random_sd

if TYPE_CHECKING:
    from transforms.engines.image.diffusers import DiffusersEngine


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Set torch to one thread: these networks are too small for more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random model with the architecture of Stable Diffusion 1.5."""
    return write_random_sd(tmp_path_factory.mktemp("models") / "random-sd")


@pytest.fixture(scope="module")
def load(folder: Path, one_thread: None) -> "Callable[..., DiffusersEngine]":
    """Return a function that loads that model with the settings that it gets."""
    return partial(load_from, folder)


@pytest.fixture(scope="module")
def engine(load: "Callable[..., DiffusersEngine]") -> "DiffusersEngine":
    """Return that model with DDIM and guidance in float32."""
    return load()
