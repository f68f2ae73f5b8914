"""Checkpoint files, which are whole or absent, and are read without running code in them.

A checkpoint is one file, `checkpoints/step-000001234.pt`, with the student, the teacher, the
optimiser, the step and the position in the data. All randomness is derived from (seed, step), so
there is no generator state to keep.

`trainer.checkpoints.writer` writes checkpoints in the background; `trainer.checkpoints.resume`
finds the newest one on all ranks.
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
from pydantic import NonNegativeFloat, PositiveInt
from torch import nn

from trainer.models.vit import EncoderConfig, build_encoder
from transforms.core import storage
from transforms.core.config import Config, no_fingerprint, stored_config
from transforms.core.errors import DAMAGE, ConfigError, MissingFileError, StorageError
from transforms.core.scratch import scratch_folder

log = logging.getLogger(__name__)

FORMAT = "synclr-checkpoint-1"
State = dict[str, Any]
_WHAT_TO_DO = "fix the path, or run `python -m trainer.train CONFIG` first"


class CheckpointConfig(Config):
    """When to write checkpoints, and which to keep."""

    every_s: NonNegativeFloat = no_fingerprint(600.0)
    """Seconds between two checkpoints; also written at the end, on SIGTERM, SIGUSR1 and Ctrl-C."""
    every_steps: PositiveInt | None = no_fingerprint(None)
    """Steps between two checkpoints, in addition to `every_s`; null is by time alone."""
    keep: PositiveInt = no_fingerprint(2)
    """Number of newest checkpoints to keep; older ones are removed."""
    keep_every_steps: PositiveInt | None = no_fingerprint(None)
    """Checkpoints at multiples of this many steps are written and never removed; null keeps only
    the newest ones."""

    def is_due(self, step: int, seconds: float) -> bool:
        """Return whether to write a checkpoint.

        Args:
            step: Number of finished steps.
            seconds: Seconds since the last checkpoint.
        """
        by_steps = [every for every in (self.every_steps, self.keep_every_steps) if every]
        return seconds >= self.every_s or any(step % every == 0 for every in by_steps)


DEFAULT = CheckpointConfig()


def checkpoints_folder(train_folder: str) -> str:
    """Return the folder of the checkpoints in a training's output folder."""
    return storage.join(train_folder, "checkpoints")


def list_checkpoints(folder: str) -> dict[int, str]:
    """Return the checkpoints in a folder: step -> URL, oldest first."""
    steps = {}
    for name in storage.list_files(folder):
        number = name.removeprefix("step-").removesuffix(".pt")
        if number.isdigit() and name == _name(int(number)):
            steps[int(number)] = storage.join(folder, name)
    return dict(sorted(steps.items()))


def write_state(state: State, url: str) -> None:
    """Write a state to a file, which is whole or absent.

    Raises:
        StorageError: The file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    storage.replace_bytes(buffer.getvalue(), url)


def save_checkpoint(state: State, folder: str, config: CheckpointConfig = DEFAULT) -> str:
    """Write the checkpoint of `state["step"]`, remove old ones, and return its URL.

    Checkpoints of later steps are left alone: they are damaged, or the training would have
    continued from them. If an old checkpoint cannot be removed, this is only logged.

    Raises:
        StorageError: The checkpoint cannot be written; older ones are still there.
    """
    url, started = storage.join(folder, _name(state["step"])), time.monotonic()
    write_state(state, url)
    log.info("checkpoint written in %.1f s: %s", time.monotonic() - started, url)
    try:
        _remove_old(folder, state["step"], config)
    except StorageError as error:
        log.warning("an old checkpoint is left: %s", error)
    return url


def _remove_old(folder: str, newest: int, config: CheckpointConfig) -> None:
    steps = {step: url for step, url in list_checkpoints(folder).items() if step <= newest}
    for step, old in list(steps.items())[: -config.keep]:
        if config.keep_every_steps is None or step % config.keep_every_steps:
            storage.delete(old)


def copy_to_host(value: Any) -> Any:
    """Return a copy of a nested state on the CPU, which later steps do not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_to_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_to_host(item) for item in value)
    return value


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on a disk of this machine."""

    url: str
    path: str
    """Path of the local copy, or of the checkpoint itself if it is local."""
    state: State
    """State whose tensors are the file, mapped into memory: only for reading."""


@contextlib.contextmanager
def open_checkpoint(url: str) -> Iterator[Checkpoint]:
    """Open a checkpoint and check all of its bytes; remove a local copy afterwards.

    Raises:
        StorageError: The file cannot be read.
        ConfigError: The file is damaged or not a checkpoint of ours.
    """
    with contextlib.ExitStack() as stack:
        path = url
        if not storage.is_local(url):
            path = os.path.join(stack.enter_context(scratch_folder()), "checkpoint.pt")
            storage.download(url, path)
        _check_sums(path, url)
        yield Checkpoint(url, path, map_checkpoint(path, url))


def map_checkpoint(path: str, url: str) -> State:
    """Map a checkpoint into memory; its tensors are read when they are used.

    Args:
        path: Path of the local file.
        url: URL of the checkpoint, for errors.

    Raises:
        ConfigError: The file is not a checkpoint of ours.
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
    """Translate the errors of zipfile, pickle and torch about a file; see `errors.reading`."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(error.errno, f"cannot read {url}: there is no such file") from error
    except (*DAMAGE, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error) as error:
        # `EINVAL`: a damaged header made the reader seek to an impossible place.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise StorageError(error.errno, f"cannot read {url}: {error.strerror}") from error
        raise ConfigError(f"checkpoint {url} is damaged or no checkpoint at all") from error


def load_checkpoint(url: str) -> State:
    """Read a checkpoint into memory.

    Raises:
        StorageError: The file cannot be read.
        ConfigError: The file is damaged or not a checkpoint of ours.
    """
    with open_checkpoint(url) as checkpoint:
        state: State = copy_to_host(checkpoint.state)
    return state


@contextlib.contextmanager
def newest_checkpoint(folder: str) -> Iterator[Checkpoint | None]:
    """Open the newest whole checkpoint in a folder; None if the folder has no checkpoints.

    Raises:
        ConfigError: There are checkpoints, but all of them are damaged.
    """
    damage: ConfigError | None = None
    for url in reversed(list_checkpoints(folder).values()):
        with contextlib.ExitStack() as stack:
            try:
                checkpoint = stack.enter_context(open_checkpoint(url))
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
def find_checkpoint(path: str) -> Iterator[Checkpoint]:
    """Open a checkpoint, or the newest whole one of a training or run.

    Args:
        path: A `.pt` file, or the folder of checkpoints, of a training or of a run.

    Raises:
        StorageError: There is no checkpoint, or it cannot be read.
        ConfigError: The checkpoint, or every one in the folder, is damaged; or the path is another
            file, or an exported encoder.
    """
    if path.endswith(".pt"):
        if not storage.exists(path):
            raise MissingFileError(None, f"there is no checkpoint {path}: {_WHAT_TO_DO}")
        with open_checkpoint(path) as checkpoint:
            yield checkpoint
        return
    if storage.is_local(path) and os.path.isfile(path):
        raise ConfigError(f"{path} is no checkpoint: expected a .pt file, or a training's folder")
    for parts in ((), ("checkpoints",), ("train", "checkpoints")):
        with newest_checkpoint(storage.join(path, *parts) if parts else path) as whole:
            if whole is not None:
                yield whole
                return
    if storage.exists(storage.join(path, "model.safetensors")):
        raise ConfigError(f"{path} is an export: expected the checkpoint or run it was made of")
    raise MissingFileError(
        None,
        f"there is no checkpoint in {path}: expected a .pt file, or the folder of a training; "
        f"{_WHAT_TO_DO}",
    )


def load_encoder(
    checkpoint: Checkpoint, which: Literal["teacher", "student"] = "teacher"
) -> tuple[nn.Module, EncoderConfig]:
    """Return a copy of a checkpoint's encoder, without heads, in evaluation mode on the CPU.

    Args:
        checkpoint: The checkpoint, open.
        which: Encoder to return. A training without a teacher (StableRep, SimCLR) has only a
            student, which is then returned for "teacher", too.

    Returns:
        The encoder, and its shape and input normalisation.

    Raises:
        ConfigError: The checkpoint does not hold the encoder that its config describes.
    """
    state = checkpoint.state
    weights = state["teacher"] if which == "teacher" and state["teacher"] else state["student"]
    try:
        config = stored_config(EncoderConfig, state["config"], checkpoint.url, "model")
        encoder = build_encoder(config, seed=0)
        encoder.load_state_dict(
            {
                name.removeprefix("encoder."): value
                for name, value in weights.items()
                if name.startswith("encoder.")
            }
        )
    except (KeyError, ConfigError, RuntimeError) as error:
        reason = f" ({error})" if isinstance(error, ConfigError) else ""
        raise ConfigError(
            f"checkpoint {checkpoint.url} does not hold the encoder that its own config describes"
            f"{reason}"
        ) from error
    return encoder.eval(), config


def _name(step: int) -> str:
    """Return the file name of the checkpoint of a step."""
    return f"step-{step:09d}.pt"
