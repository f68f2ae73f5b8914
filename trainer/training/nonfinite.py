"""What a step that is not finite leaves behind: a file to look into it, and a refusal to repeat it.

A training is a pure function of its config and data, so the same command would meet the same step
again, hours later. Until a setting is changed that numbers depend on, the step is left behind or
the note is deleted, it ends at once.
"""

import json
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
from transforms.core.errors import MissingFileError, reading

NOTE = "not-finite.json"
ABSURD = 1e3
"""No weight of a sound network comes near."""
SHOWN = 3
"""Captions or modules that a sentence names; the note and the replay file have all captions."""
ROUNDING: dict[str, Any] = {
    "accumulation": True,
    "device": True,
    "execution": {"sharding", "compile", "recompute"},
    "num_threads": True,
    "objective": {"contrastive_chunk", "ibot_chunk"},
}
"""Settings outside the fingerprint that may yet decide whether a number is finite."""


def keep(training: Training, folder: str, error: NotFiniteError) -> NotFiniteError:
    """Save the state before the step; all ranks must call it together.

    Args:
        training: As the step left it.
        folder: Of the training.
        error: Says which step.

    Returns:
        The error with a sentence that says how to go on, once all is written.
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
            f"{error}, for weights were ruined in an earlier one ({few(ruined)}): delete the "
            "newest checkpoints, and set optim.clip_norm, a lower optim.learning_rate or "
            "precision=fp32"
        )
    else:
        sentence = (
            f"{error}, captions {few(error.caption_ids)}; look into it with `python -m "
            f"trainer.replay {replay}`; go on with '{_skipping(config, step)}', or with another "
            f"{' or '.join(CHANGEABLE[:-1])}; to try the same again delete {note}"
        )
    content = {
        "step": step,
        "sentence": sentence,
        "caption_ids": error.caption_ids,
        "settings": _settings(config),
    }

    def write_down() -> None:
        if distributed.rank() == 0:
            write_state(state, replay)
            storage.replace_bytes(json.dumps(content, indent=1).encode("utf-8"), note)

    distributed.run_on_all_ranks(write_down)
    return NotFiniteError(sentence, step, error.caption_ids)


def refuse_to_repeat(config: TrainConfig, folder: str, step: int) -> None:
    """End a training that would meet the same step again.

    Args:
        config: The training.
        folder: Of the training.
        step: Where it would continue.

    Raises:
        NotFiniteError: With the same arithmetic a step from there on was not finite.
        DamagedFileError: The note cannot be understood.
    """
    url = storage.join(folder, NOTE)
    try:
        content = storage.read_bytes(url)
    except MissingFileError:
        return
    with reading(f"{url} (delete it to train on)"):
        note = json.loads(content)
        error = NotFiniteError(str(note["sentence"]), int(note["step"]), list(note["caption_ids"]))
        same = _same_settings(dict(note["settings"]), config)
    if same and error.step >= step:
        raise error


def ruined_weights(state: State) -> Iterator[str]:
    """Those that are not finite or absurd; a step that fails may spoil running estimates itself."""
    for owner in ("student", "teacher"):
        for name, value in (state[owner] or {}).items():
            estimate = "running_" in name or not value.is_floating_point()
            if not estimate and not (value.abs() <= ABSURD).all():
                yield f"{owner} {name}"


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What the numbers of a step depend on, as JSON has it."""
    return {**fingerprint_fields(config), **config.model_dump(mode="json", include=ROUNDING)}


def _same_settings(noted: dict[str, Any], config: TrainConfig) -> bool:
    """Compare the settings of a note, which earlier versions wrote for all objectives at once."""
    others = fields_of_other_choices(config)
    theirs, ours = (dict(flatten(settings)) for settings in (noted, _settings(config)))
    ours = {key: value for key, value in ours.items() if value != {}}
    return ours == {key: value for key, value in theirs.items() if key not in others}


def _skipping(config: TrainConfig, step: int) -> str:
    """The override that passes a step over, beside those that are passed over already."""
    return f"skip_steps={json.dumps([*config.skip_steps, (step, step)], separators=(',', ':'))}"
