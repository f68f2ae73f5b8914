"""What can be scored: a checkpoint of ours, an exported folder, or any model of timm.

A reference is a checkpoint or the folder of a training or run; a folder that `trainer.export` (or
timm) wrote; or `timm:NAME` with timm's pretrained weights, or `timm:NAME@FILE` with weights of a
local file. Features are what timm's own call returns without a classifier: the cls token of the
last block for the encoders of this project and of the paper.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from transforms.core import storage
from transforms.core.errors import ConfigError
from transforms.core.seeding import derive

if TYPE_CHECKING:
    from torch import nn

TIMM = "timm:"
"""Prefix of references to models of timm."""
WEIGHTS, SETTINGS = "model.safetensors", "config.json"
"""Files of an exported folder."""


@dataclass(frozen=True)
class Input:
    """Images that an encoder takes."""

    image_size: int
    """Side in pixels."""
    mean: tuple[float, ...]
    """Subtracted from each channel of an image in [0, 1]."""
    std: tuple[float, ...]
    """Divides each channel after that."""


@dataclass(frozen=True)
class Model:
    """An encoder to score, in evaluation mode on the CPU."""

    url: str
    """Where it comes from, for messages."""
    digest: str
    """Digest of the weights."""
    encoder: "nn.Module"
    """Network with timm's `forward_features`; its call returns features [N, D]."""
    input: Input
    architecture: str
    """Digest of the architecture: the same for the same features of fresh weights."""
    fresh: Callable[[int], "nn.Module"]
    """seed -> the same architecture with fresh weights."""


@contextlib.contextmanager
def finding(reference: str) -> Iterator[str]:
    """Yield a reference; translate timm's errors about it into one sentence."""
    try:
        yield reference
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"model {reference!r} cannot be loaded ({reason}): expected a checkpoint, an exported "
            "folder, timm:NAME of a model whose weights are in timm's cache, or timm:NAME@FILE"
        ) from error


def load_model(reference: str, which: Literal["teacher", "student"]) -> Model:
    """Return the model of a reference.

    Args:
        reference: See the top of this module.
        which: Network of a checkpoint.

    Raises:
        StorageError: There is no such checkpoint, or storage failed.
        ConfigError: It is not a model, or its files are damaged.
    """
    if reference.startswith(TIMM):
        with finding(reference):
            return _of_timm(reference, reference.removeprefix(TIMM))
    if is_export(reference):
        with finding(reference):
            return _exported(reference)
    return _checkpoint(reference, which)


def is_export(reference: str) -> bool:
    """Return whether a reference is a local folder with the files of an export."""
    return storage.is_local(reference) and all(
        os.path.isfile(os.path.join(reference, name)) for name in (WEIGHTS, SETTINGS)
    )


def _checkpoint(reference: str, which: Literal["teacher", "student"]) -> Model:
    from trainer.checkpoints.files import find_checkpoint, load_encoder
    from trainer.models.vit import build_encoder

    with find_checkpoint(reference) as checkpoint:
        digest = file_digest(checkpoint.path)
        encoder, config = load_encoder(checkpoint, which)
        url = checkpoint.url
    shape = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return Model(
        url,
        digest,
        encoder,
        Input(config.image_size, config.mean, config.std),
        shape,
        lambda seed: build_encoder(config, seed),
    )


def _exported(folder: str) -> Model:
    digest = file_digest(os.path.join(folder, WEIGHTS))
    settings = file_digest(os.path.join(folder, SETTINGS))
    return _timm_model(folder, f"{digest}{settings}", f"local-dir:{folder}", settings, {})


def _of_timm(reference: str, name: str) -> Model:
    name, _, file = name.partition("@")
    overlay = {"pretrained_cfg_overlay": {"file": file}} if file else {}
    return _timm_model(reference, None, name, name, overlay)


def _timm_model(
    url: str, digest: str | None, name: str, architecture: str, options: dict[str, Any]
) -> Model:
    import timm
    import torch
    from timm.data import resolve_model_data_config

    def build(pretrained: bool, **more: Any) -> "nn.Module":
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **more)
        return model.eval()

    def fresh(seed: int) -> "nn.Module":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build(pretrained=False)

    encoder = build(pretrained=True, **options)
    config = resolve_model_data_config(encoder)
    shape = Input(config["input_size"][-1], tuple(config["mean"]), tuple(config["std"]))
    return Model(url, digest or weights_digest(encoder), encoder, shape, architecture, fresh)


def file_digest(path: str) -> str:
    """Return the blake2b hash of a file, 32 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def weights_digest(network: "nn.Module") -> str:
    """Return the blake2b hash of a network's weights and their names, 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def untrained_seed(seed: int, number: int) -> int:
    """Return the seed of an encoder with fresh weights."""
    return derive(seed, "untrained", number)
