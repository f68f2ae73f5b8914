"""Records of a step whose loss or gradient is not finite, and the refusal to repeat that step.

Such a step leaves a replay file, which holds the state before it, and a note, `not-finite.json`. A
training is a pure function of its config and data, so the same command would fail at the same step
again, hours later. It fails at once instead, until a setting that numbers depend on is changed, the
training continues from a later step, or the note is deleted. The first checkpoint after the step
deletes the note; the replay file stays.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from trainer import distributed
from trainer.checkpoints.files import State, write_state
from trainer.config import CHANGEABLE, TrainConfig
from trainer.training.errors import NotFiniteError
from trainer.training.step import Training
from transforms.core import storage
from transforms.core.config import fields_of_other_choices, fingerprint_fields
from transforms.core.config_keys import flatten
from transforms.core.errors import DamagedFileError, MissingFileError, StorageError, reading
from transforms.core.references import written_fields

log = logging.getLogger(__name__)

NOTE = "not-finite.json"
ABSURD = 1e3
"""Weights above this are ruined: those of a sound network are far smaller."""
SHOWN = 3
"""Number of captions or modules that a message names; note and replay file name all captions."""
ROUNDING: dict[str, Any] = {
    "accumulation": True,
    "device": True,
    "execution": {"sharding", "compile", "recompute"},
    "num_threads": True,
    "objective": {"contrastive_chunk", "ibot_chunk"},
}
"""Settings outside the fingerprint that change rounding, and with it whether a step is finite."""


def keep(training: Training, folder: str, error: NotFiniteError) -> NotFiniteError:
    """Write the replay file and the note of a step; all ranks must call this together.

    Args:
        training: Training after the step; its weights are those before the step.
        folder: Output folder of the training.
        error: The error about the step.

    Returns:
        The error, with a message that says what to do.
    """
    config, step = training.config, error.step
    replay = storage.join(folder, f"replay-step-{step:09d}.pt")
    note = storage.join(folder, NOTE)
    state: State = {
        **training.state(),
        "step": step,
        "position": step * config.captions_per_batch,
        "caption_ids": error.caption_ids,
    }
    if ruined := list(ruined_weights(state)) if distributed.rank() == 0 else []:
        sentence = (
            f"{error}, because weights were ruined in an earlier step ({few(ruined)}): delete the "
            "newest checkpoints, and set optim.clip_norm, a lower optim.learning_rate or "
            "precision=fp32"
        )
    else:
        sentence = (
            f"{error}, captions {few(error.caption_ids)}; examine it with `python -m "
            f"trainer.replay {replay}`; continue with '{_skipping(config, step)}', or with another "
            f"{' or '.join(CHANGEABLE[:-1])}; to try the same again delete {note}"
        )
    content = {
        "step": step,
        "sentence": sentence,
        "caption_ids": error.caption_ids,
        "settings": _settings(config),
    }

    def write() -> None:
        if distributed.rank() == 0:
            write_state(state, replay)
            storage.replace_bytes(json.dumps(content, indent=1).encode("utf-8"), note)

    distributed.run_on_all_ranks(write)
    return NotFiniteError(sentence, step, error.caption_ids)


def refuse_to_repeat(config: TrainConfig, folder: str, step: int) -> None:
    """Refuse to continue a training that would fail at the same step again.

    Args:
        config: The training.
        folder: Output folder of the training.
        step: Step at which the training would continue.

    Raises:
        NotFiniteError: This step or a later one was not finite with the same settings.
        DamagedFileError: The note is damaged.
    """
    found = _read(folder)
    if found is None:
        return
    error, settings = found
    if error.step >= step and _same_settings(settings, config):
        raise error


def forget(folder: str, step: int) -> None:
    """Delete the note of a step that the training has passed; if it cannot be, only log this.

    Args:
        folder: Output folder of the training.
        step: Number of steps that a complete checkpoint holds.
    """
    try:
        found = _read(folder)
        if found is not None and found[0].step < step:
            storage.delete(storage.join(folder, NOTE))
    except (StorageError, DamagedFileError) as error:
        log.warning("the note of a step that was not finite is left: %s", error)


def _read(folder: str) -> tuple[NotFiniteError, dict[str, Any]] | None:
    """Return the error that the note of a training describes, and its settings; None without one.

    Raises:
        DamagedFileError: The note is damaged.
    """
    url = storage.join(folder, NOTE)
    try:
        content = storage.read_bytes(url)
    except MissingFileError:
        return None
    with reading(f"{url} (delete it to train on)"):
        note = json.loads(content)
        error = NotFiniteError(str(note["sentence"]), int(note["step"]), list(note["caption_ids"]))
        return error, dict(note["settings"])


def ruined_weights(state: State) -> Iterator[str]:
    """Yield the names of weights that are not finite or absurdly large.

    Running estimates of batch norms are left out, because the step that fails changes them itself.
    """
    for owner in ("student", "teacher"):
        for name, value in (state[owner] or {}).items():
            estimate = "running_" in name or not value.is_floating_point()
            if not estimate and not (value.abs() <= ABSURD).all():
                yield f"{owner} {name}"


def few(names: Sequence[str]) -> str:
    """Return the first names and the number of the others as text."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that the numbers of a step depend on, dotted, as they are written."""
    rounding = dict(flatten(config.model_dump(mode="json", include=ROUNDING)))
    return written_fields({**fingerprint_fields(config), **rounding}, config.written())


def _same_settings(noted: dict[str, Any], config: TrainConfig) -> bool:
    """Compare the settings of a note, which earlier versions wrote for all objectives at once."""
    others = fields_of_other_choices(config)
    theirs, ours = (dict(flatten(settings)) for settings in (noted, _settings(config)))
    ours = {key: value for key, value in ours.items() if value != {}}
    return ours == {key: value for key, value in theirs.items() if key not in others}


def _skipping(config: TrainConfig, step: int) -> str:
    """Return the override that skips a step, in addition to those skipped already."""
    return f"skip_steps={json.dumps([*config.skip_steps, (step, step)], separators=(',', ':'))}"
