"""Checkpoints: written whole or not at all, read without running any code in them.

One file per checkpoint, `checkpoints/step-000001234.pt`, with the student, the teacher, the
optimiser, the step and the position in the data. All randomness is derived from (seed, step), so
there is no generator state to keep.

A checkpoint is copied to the host and written from there by a thread, while the training goes on;
it costs the training the copy alone.
"""

import io
import logging
import os
import pickle
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveInt, ValidationError
from torch import nn

from trainer.vit import EncoderConfig, build_encoder
from transforms.core import storage
from transforms.core.config import Config, ConfigError, no_fingerprint

log = logging.getLogger(__name__)

FORMAT = "synclr-checkpoint-1"
State = dict[str, Any]
_GO_ON = "mend the path, or run `python -m trainer.train CONFIG` first"


class CheckpointConfig(Config):
    """When checkpoints are written and which stay."""

    every_s: NonNegativeFloat = no_fingerprint(600.0)
    """Seconds between two checkpoints; also written at the end, on SIGTERM, SIGUSR1 and Ctrl-C."""
    every_steps: PositiveInt | None = no_fingerprint(None)
    """Steps between two checkpoints, beside `every_s`; null is by time alone."""
    keep: PositiveInt = no_fingerprint(2)
    """Newest checkpoints that stay; older ones are removed."""
    keep_every_steps: PositiveInt | None = no_fingerprint(None)
    """Checkpoints at multiples of this many steps stay for good; null keeps the newest alone."""

    def is_due(self, step: int, seconds: float) -> bool:
        """Whether to write one after `step` finished steps, `seconds` after the last one."""
        by_steps = [every for every in (self.every_steps, self.keep_every_steps) if every]
        return seconds >= self.every_s or any(step % every == 0 for every in by_steps)


DEFAULT = CheckpointConfig()


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


def write(state: State, url: str) -> None:
    """Write a state to a file that is whole or absent.

    Raises:
        storage.StorageError: It cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    storage.replace_bytes(buffer.getvalue(), url)


def save(state: State, folder: str, config: CheckpointConfig = DEFAULT) -> str:
    """Write a checkpoint of `state["step"]`, then remove older ones that need not stay.

    Later ones are left alone: they are damaged, or the training would have continued from them.
    Older ones that cannot be removed are warned about.

    Raises:
        storage.StorageError: It cannot be written; older checkpoints are still there.
    """
    url = storage.join(folder, _name(state["step"]))
    write(state, url)
    try:
        _thin_out(folder, state["step"], config)
    except storage.StorageError as error:
        log.warning("an old checkpoint stays: %s", error)
    return url


def _thin_out(folder: str, newest: int, config: CheckpointConfig) -> None:
    steps = {step: url for step, url in list_steps(folder).items() if step <= newest}
    for step, old in list(steps.items())[: -config.keep]:
        if config.keep_every_steps is None or step % config.keep_every_steps:
            storage.delete(old)


class CheckpointWriter:
    """Writes checkpoints beside the training, one at a time; use as a context manager.

    Leaving it waits for the last one, also after an exception.

    Args:
        folder: Where they go.
        config: Which stay.
    """

    def __init__(self, folder: str, config: CheckpointConfig) -> None:
        self._folder = folder
        self._config = config
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True)

    def save(self, state: State) -> None:
        """Copy a state to the host and begin to write it, once the one before is written.

        Raises:
            storage.StorageError: The one before could not be written.
        """
        self.wait()
        self._last = self._thread.submit(save, _on_host(state), self._folder, self._config)

    def wait(self) -> str:
        """Wait for the last checkpoint; returns its URL, "" if there was none.

        Raises:
            storage.StorageError: It could not be written; older checkpoints are still there.
        """
        return self._last.result() if self._last is not None else ""


def _on_host(value: Any) -> Any:
    """A copy of a nested state on the CPU, which the training cannot change any more."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_host(item) for item in value)
    return value


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


def is_whole(url: str) -> bool:
    """Whether a file is one of our checkpoints, to its end.

    Raises:
        storage.StorageError: It cannot be read.
    """
    try:
        load(url)
    except ConfigError:
        return False
    return True


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
        ConfigError: The path is another kind of file.
    """
    if path.endswith(".pt"):
        if not storage.exists(path):
            raise storage.MissingFileError(None, f"there is no checkpoint {path}: {_GO_ON}")
        return path
    if storage.is_local(path) and os.path.isfile(path):
        raise ConfigError(f"{path} is no checkpoint: expected a .pt file, or a training's folder")
    for parts in ((), ("checkpoints",), ("train", "checkpoints")):
        steps = list_steps(storage.join(path, *parts) if parts else path)
        if steps:
            return steps[max(steps)]
    raise storage.MissingFileError(
        None,
        f"there is no checkpoint in {path}: expected a .pt file, or the folder of a training; "
        f"{_GO_ON}",
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
