"""Checkpoints: written whole or not at all, read without running any code in them.

One file per checkpoint, `checkpoints/step-000001234.pt`, with the student, the teacher, the
optimiser, the step and the position in the data. All randomness is derived from (seed, step), so
there is no generator state to keep.

`trainer.checkpoints.writer` writes them while the training runs; `trainer.checkpoints.resume` loads
them.
"""

import contextlib
import errno
import io
import logging
import os
import pickle
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt, ValidationError
from torch import nn

from trainer.models.vit import EncoderConfig, build_encoder
from transforms.core import storage
from transforms.core.config import Config, no_fingerprint
from transforms.core.errors import DAMAGE, ConfigError, MissingFileError, StorageError
from transforms.core.scratch import scratch_folder

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
        StorageError: It cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    storage.replace_bytes(buffer.getvalue(), url)


def save(state: State, folder: str, config: CheckpointConfig = DEFAULT) -> str:
    """Write a checkpoint of `state["step"]`, then remove older ones that need not stay.

    Later ones are left alone: they are damaged, or the training would have continued from them.
    Older ones that cannot be removed are warned about.

    Raises:
        StorageError: It cannot be written; older checkpoints are still there.
    """
    url, started = storage.join(folder, _name(state["step"])), time.monotonic()
    write(state, url)
    log.info("checkpoint written in %.1f s: %s", time.monotonic() - started, url)
    try:
        _thin_out(folder, state["step"], config)
    except StorageError as error:
        log.warning("an old checkpoint stays: %s", error)
    return url


def _thin_out(folder: str, newest: int, config: CheckpointConfig) -> None:
    steps = {step: url for step, url in list_steps(folder).items() if step <= newest}
    for step, old in list(steps.items())[: -config.keep]:
        if config.keep_every_steps is None or step % config.keep_every_steps:
            storage.delete(old)


def on_host(value: Any) -> Any:
    """A copy of a nested state on the CPU, which the training cannot change any more."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_host(item) for item in value)
    return value


@dataclass(frozen=True)
class Opened:
    """A whole checkpoint on this machine's disk."""

    url: str
    path: str
    """Of its copy, or of itself where it is local."""
    state: State
    """Its tensors are the file, mapped into memory: for reading, not for training on."""


@contextlib.contextmanager
def opened(url: str) -> Iterator[Opened]:
    """A checkpoint, read once to see that it is whole; a local copy is gone afterwards.

    Raises:
        StorageError: It cannot be read.
        ConfigError: It is not one of our checkpoints, or it is damaged.
    """
    with contextlib.ExitStack() as stack:
        path = url
        if not storage.is_local(url):
            path = os.path.join(stack.enter_context(scratch_folder()), "checkpoint.pt")
            storage.download(url, path)
        _check_sums(path, url)
        yield Opened(url, path, mapped(path, url))


def mapped(path: str, url: str) -> State:
    """The state in the file of a checkpoint; its tensors are read when they are used.

    Raises:
        ConfigError: It is not one of our checkpoints.
    """
    with _reading(url):
        state: State = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(f"checkpoint {url} was not written by this trainer: expected {FORMAT}")
    return state


def _check_sums(path: str, url: str) -> None:
    """Compare every byte with the checksums that `torch.save` writes and `torch.load` ignores."""
    with _reading(url), zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise EOFError


@contextlib.contextmanager
def _reading(url: str) -> Iterator[None]:
    """Say in a sentence that a file cannot be read or is not what it must be."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(error.errno, f"cannot read {url}: there is no such file") from error
    except (*DAMAGE, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error) as error:
        # `EINVAL`: a damaged header sent the reader to a place that no file has.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise StorageError(error.errno, f"cannot read {url}: {error.strerror}") from error
        raise ConfigError(f"checkpoint {url} is damaged or no checkpoint at all") from error


def load(url: str) -> State:
    """Read a checkpoint into memory.

    Raises:
        StorageError: It cannot be read.
        ConfigError: It is not one of our checkpoints, or it is damaged.
    """
    with opened(url) as checkpoint:
        state: State = on_host(checkpoint.state)
    return state


@contextlib.contextmanager
def newest(folder: str) -> Iterator[Opened | None]:
    """The newest checkpoint in a folder that is whole; None if there is none at all.

    Raises:
        ConfigError: There are checkpoints, but none is whole.
    """
    damage: ConfigError | None = None
    for url in reversed(list_steps(folder).values()):
        with contextlib.ExitStack() as stack:
            try:
                checkpoint = stack.enter_context(opened(url))
            except ConfigError as error:
                log.warning("%s; trying the one before", error)
                damage = error
                continue
            yield checkpoint
            return
    if damage is not None:
        raise damage
    yield None


@contextlib.contextmanager
def found(path: str) -> Iterator[Opened]:
    """The checkpoint that a path means: itself, or the newest whole one of a training or run.

    Raises:
        StorageError: There is none, or it cannot be read.
        ConfigError: It is damaged, or there are some in the folder, but none is whole; or it is
            another file, or an export.
    """
    if path.endswith(".pt"):
        if not storage.exists(path):
            raise MissingFileError(None, f"there is no checkpoint {path}: {_GO_ON}")
        with opened(path) as checkpoint:
            yield checkpoint
        return
    if storage.is_local(path) and os.path.isfile(path):
        raise ConfigError(f"{path} is no checkpoint: expected a .pt file, or a training's folder")
    for parts in ((), ("checkpoints",), ("train", "checkpoints")):
        with newest(storage.join(path, *parts) if parts else path) as whole:
            if whole is not None:
                yield whole
                return
    if storage.exists(storage.join(path, "model.safetensors")):
        raise ConfigError(f"{path} is an export: expected the checkpoint or run it was made of")
    raise MissingFileError(
        None,
        f"there is no checkpoint in {path}: expected a .pt file, or the folder of a training; "
        f"{_GO_ON}",
    )


def load_encoder(
    checkpoint: Opened, which: Literal["teacher", "student"] = "teacher"
) -> tuple[nn.Module, EncoderConfig]:
    """The encoder of a checkpoint, without heads, in evaluation mode on the CPU.

    Args:
        checkpoint: Opened; the encoder is a copy of what it holds.
        which: A training without teacher (StableRep, SimCLR) has a student only; its "teacher" is
            the student.

    Returns:
        The encoder, and its shape and input normalisation.

    Raises:
        ConfigError: It holds no encoder of ours.
    """
    state = checkpoint.state
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
            f"checkpoint {checkpoint.url} does not hold the encoder that its own config describes"
        ) from error
    return encoder.eval(), config


def _name(step: int) -> str:
    return f"step-{step:09d}.pt"
