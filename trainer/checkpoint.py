"""Checkpoints: written whole or not at all, read without running any code in them.

One file per checkpoint, `checkpoints/step-000001234.pt`, with the student, the teacher, the
optimiser, the step and the position in the data. All randomness is derived from (seed, step), so
there is no generator state to keep.
"""

import io
import logging
import os
import pickle
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from trainer.vit import EncoderConfig, build_encoder
from transforms.core import storage
from transforms.core.config import Config, ConfigError, no_fingerprint

log = logging.getLogger(__name__)

FORMAT = "synclr-checkpoint-1"
State = dict[str, Any]


class CheckpointConfig(Config):
    """When checkpoints are written and which stay."""

    every_s: float = no_fingerprint(600.0)
    """Seconds between two checkpoints; also written at the end, on SIGTERM and on Ctrl-C."""
    keep: int = no_fingerprint(2)
    """The newest ones that stay; older ones are removed from local disk."""


def checkpoints_folder(train_folder: str) -> str:
    """Where a training's checkpoints stand."""
    return storage.join(train_folder, "checkpoints")


def list_steps(folder: str) -> dict[int, str]:
    """The checkpoints in a folder: step -> URL, oldest first."""
    steps = {}
    for name in storage.list_files(folder):
        number = name.removeprefix("step-").removesuffix(".pt")
        if number.isdigit() and name == _name(int(number)):
            steps[int(number)] = storage.join(folder, name)
    return dict(sorted(steps.items()))


def save(state: State, folder: str, *, keep: int) -> str:
    """Write a checkpoint of `state["step"]`, then remove the oldest beyond `keep`.

    Raises:
        storage.StorageError: It cannot be written; older checkpoints are still there.
    """
    url = storage.join(folder, _name(state["step"]))
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    storage.replace_bytes(buffer.getvalue(), url)
    if storage.is_local(folder):
        for old in list(list_steps(folder).values())[:-keep]:
            os.unlink(old)
    return url


def load(url: str) -> State:
    """Read a checkpoint onto the CPU.

    Raises:
        storage.StorageError: It cannot be read.
        ConfigError: It is not one of our checkpoints, or it is damaged.
    """
    content = storage.read_bytes(url)
    try:
        state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise ConfigError(f"checkpoint {url} is damaged or no checkpoint at all") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(f"checkpoint {url} was not written by this trainer: expected {FORMAT}")
    return state


def load_newest(folder: str) -> State | None:
    """The newest checkpoint in a folder that is whole; None if there is none at all.

    Raises:
        ConfigError: There are checkpoints, but none is whole.
    """
    urls = list(list_steps(folder).values())
    damage: ConfigError | None = None
    for url in reversed(urls):
        try:
            return load(url)
        except ConfigError as error:
            log.warning("%s; trying the one before", error)
            damage = error
    if damage is not None:
        raise damage
    return None


def find(path: str) -> str:
    """The checkpoint that a path means: itself, or the newest in a training's or run's folder.

    Raises:
        storage.MissingFileError: There is none.
    """
    if path.endswith(".pt"):
        return path
    for parts in ((), ("checkpoints",), ("train", "checkpoints")):
        steps = list_steps(storage.join(path, *parts) if parts else path)
        if steps:
            return steps[max(steps)]
    raise storage.MissingFileError(
        None, f"there is no checkpoint in {path}: expected a .pt file, or the folder of a training"
    )


def load_encoder(
    path: str, which: Literal["teacher", "student"] = "teacher"
) -> tuple[nn.Module, EncoderConfig]:
    """The encoder of a checkpoint, without heads, in evaluation mode on the CPU.

    Args:
        path: A checkpoint, or the folder of a training or run (its newest checkpoint).
        which: A training without teacher (StableRep, SimCLR) has a student only; its "teacher" is
            the student.

    Returns:
        The encoder, and its shape and input normalisation.

    Raises:
        storage.StorageError: There is no checkpoint, or it cannot be read.
        ConfigError: It is damaged, or not ours.
    """
    url = find(path)
    state = load(url)
    weights = state["teacher"] if which == "teacher" and state["teacher"] else state["student"]
    try:
        config = EncoderConfig.model_validate(state["config"]["model"])
        encoder = build_encoder(config, seed=0)
        encoder.load_state_dict(
            {
                name.removeprefix("encoder."): value
                for name, value in weights.items()
                if name.startswith("encoder.")
            }
        )
    except (KeyError, ValidationError, RuntimeError) as error:
        raise ConfigError(
            f"checkpoint {url} does not hold the encoder that its own config describes"
        ) from error
    return encoder.eval(), config


def _name(step: int) -> str:
    return f"step-{step:09d}.pt"
