"""Small checkpoints, and a record of who reads one."""

from typing import Any

import pytest
import torch

from tests.support.gradients import tiny_config
from trainer.checkpoints import files as checkpoint_files
from trainer.training.step import Training
from transforms.core import storage


def note_readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that collects each later operation that reads a whole checkpoint.

    Checkpoints are large, so a command should read one as seldom as possible.
    """
    noted: list[str] = []

    def watch(owner: Any, name: str) -> None:
        work = getattr(owner, name)

        def watched(*arguments: str) -> Any:
            noted.extend([name] * any(argument.endswith(".pt") for argument in arguments))
            return work(*arguments)

        monkeypatch.setattr(owner, name, watched)

    for name in ("download", "read_bytes"):
        watch(storage, name)
    watch(checkpoint_files, "_check_sums")
    return noted


def tiny_state(step: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the state of a training of `tiny_config` that claims to be at `step`."""
    training = Training(tiny_config("unused", **changes), torch.device("cpu"))
    training.step = step
    return training.state()
