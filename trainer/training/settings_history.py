"""Which settings a training had from which step on, of those that may be changed on a run.

`<run>/train/settings.yaml` has an entry for the start and one for each change; checkpoints hold the
whole config that they were made with.
"""

import logging
from typing import Any

import yaml

from trainer.config import CHANGEABLE, TrainConfig
from transforms.core import storage
from transforms.core.config import fingerprint_fields
from transforms.core.errors import MissingFileError

log = logging.getLogger(__name__)


def changeable(config: TrainConfig) -> dict[str, Any]:
    """The settings that may be changed on a run, as flat dotted keys with JSON values."""
    return {key: value for key, value in fingerprint_fields(config).items() if key in CHANGEABLE}


def fixed(config: TrainConfig) -> dict[str, Any]:
    """The settings that a run keeps to its end."""
    return {k: v for k, v in fingerprint_fields(config).items() if k not in CHANGEABLE}


def note_settings(config: TrainConfig, folder: str, step: int) -> None:
    """Write down the settings with which a training starts or continues, if they are others.

    Args:
        config: The training.
        folder: Of the training.
        step: Where it starts; what was noted for later steps did not come to a checkpoint.
    """
    url, ours = storage.join(folder, "settings.yaml"), changeable(config)
    try:
        there: list[dict[str, Any]] = yaml.safe_load(storage.read_bytes(url))
    except MissingFileError:
        there = []
    entries = [entry for entry in there if entry["from_step"] < step]
    before = entries[-1]["settings"] if entries else ours
    for key in sorted(key for key in ours if ours[key] != before.get(key)):
        log.info("From step %d on %s is %s, was %s.", step, key, ours[key], before.get(key))
    if not entries or before != ours:
        entries.append({"from_step": step, "settings": ours})
    if entries != there:
        storage.replace_bytes(yaml.safe_dump(entries).encode("utf-8"), url)
