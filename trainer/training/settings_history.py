"""History of the settings that may be changed on a run.

`<run>/train/settings.yaml` has one entry for the start and one for each change: the settings, and
the step from which on they apply. Each checkpoint holds the whole config that it was made with.
"""

import logging
from typing import Any

import yaml

from trainer.config import CHANGEABLE, TrainConfig
from transforms.core import storage
from transforms.core.config import fingerprint_fields
from transforms.core.errors import DamagedFileError, MissingFileError
from transforms.core.references import written_fields

log = logging.getLogger(__name__)


def changeable(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that may be changed on a run, as dotted keys with JSON values.

    A value from the environment is its reference and its hash.
    """
    fields = {key: value for key, value in fingerprint_fields(config).items() if key in CHANGEABLE}
    return written_fields(fields, config.written())


def fixed(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that may not be changed on a run, as dotted keys with JSON values."""
    return {k: v for k, v in fingerprint_fields(config).items() if k not in CHANGEABLE}


def note_settings(config: TrainConfig, folder: str, step: int) -> None:
    """Add an entry if a training starts, or continues with changed settings.

    Args:
        config: The training.
        folder: Output folder of the training.
        step: Step at which it starts or continues. Entries of later steps are removed: the training
            wrote no checkpoint after them.

    Raises:
        DamagedFileError: The file is damaged.
    """
    url, ours = storage.join(folder, "settings.yaml"), changeable(config)
    there = _read(url)
    entries = [entry for entry in there if entry["from_step"] < step]
    before = entries[-1]["settings"] if entries else ours
    for key in sorted(key for key in ours if ours[key] != before.get(key)):
        log.info("From step %d on, %s is %s (was %s).", step, key, ours[key], before.get(key))
    if not entries or before != ours:
        entries.append({"from_step": step, "settings": ours})
    if entries != there:
        storage.replace_bytes(yaml.safe_dump(entries).encode("utf-8"), url)


def _read(url: str) -> list[dict[str, Any]]:
    """Return the entries of a history, none without a file.

    Raises:
        DamagedFileError: The file is damaged.
    """
    try:
        entries: Any = yaml.safe_load(storage.read_bytes(url))
        for entry in entries:
            if not (isinstance(entry["from_step"], int) and isinstance(entry["settings"], dict)):
                raise TypeError("an entry has no step or no settings")
        return list(entries)
    except MissingFileError:
        return []
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(
            f"{url} is damaged ({type(error).__name__}): it is only a record of settings for "
            "people; delete it, then run the same command to continue"
        ) from error
