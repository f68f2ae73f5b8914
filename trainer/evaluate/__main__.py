"""The scoring command.

    python -m trainer.evaluate TASK CONFIG [key=value ...]

TASK is a protocol (`knn`, `logistic`) or `all`. The command scores the newest checkpoint of
`<run>/train` (or `checkpoint`) and writes `<run>/scores`: `<task>-<data set>.json`, `scores.json`
and `scores.md`. Run again for the same checkpoint, it scores only what is missing and prints all
scores. Data sets that are not on this machine are left out, one line each. Exit code 0: all scores
that can be had are there; 2: a setting is wrong; 1: something is missing, and the last line says
what; 130: Ctrl-C.

    python -m trainer.evaluate check [CONFIG] [data=FOLDER]

lists the data sets that are there, those that are missing, and how to get them.
"""

if __name__ == "__main__":
    from trainer import cli

    cli.check_temporary_folder()

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import cli
from trainer.evaluate import scoresheet
from trainer.evaluate.check import check
from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.datasets import (
    AbsentSetError,
    LabelledSet,
    expand,
    load_dataset,
    name_of,
)
from trainer.evaluate.features import Extraction, Subject, encoder_subject, pixels_subject
from trainer.evaluate.protocols import PROTOCOLS, config_class
from trainer.evaluate.protocols.base import Evaluation
from trainer.evaluate.scoresheet import TaskScores
from transforms.core import storage
from transforms.core.config import fingerprint_fields, load_config, parse_config
from transforms.core.errors import ConfigError, UnfinishedError
from transforms.core.seeding import derive

if TYPE_CHECKING:
    from torch import nn

    from trainer.models.vit import EncoderConfig

ALL, CHECK = "all", "check"
VERSION = 1
"""Version of the protocols. Raise it when scores change, so that old ones are computed again."""


def evaluate(tasks: Sequence[str], config: EvaluateConfig) -> str:
    """Compute missing scores, write the score sheet and return it as text.

    Raises:
        ConfigError: A setting is wrong.
        StorageError: There is no checkpoint, or storage failed.
        DamagedFileError: A picture cannot be decoded.
    """
    from trainer.checkpoints.files import find_checkpoint, load_encoder

    folder = storage.join(config.run, "scores")
    datasets, absent = _datasets(config)
    with find_checkpoint(config.checkpoint or config.run) as checkpoint:
        digest = _digest(checkpoint.path)
        encoder, shape = load_encoder(checkpoint, config.which)

    def fingerprint(task: str, dataset: LabelledSet) -> str:
        settings = _settings(task, config)
        return scoresheet.fingerprint(task, settings, digest, dataset.identity, VERSION)

    def is_scored(task: str, dataset: LabelledSet) -> bool:
        stored = scoresheet.load(folder, task, dataset.name)
        return stored is not None and stored.fingerprint == fingerprint(task, dataset)

    missing = {task: [d for d in datasets if not is_scored(task, d)] for task in tasks}
    missing = {task: unscored for task, unscored in missing.items() if unscored}
    if missing:
        storage.check_writable(folder)
        evaluation = Evaluation(config, datasets, _subjects(config, encoder, shape))
        for task, unscored in missing.items():
            scores = PROTOCOLS[task].run(replace(evaluation, datasets=unscored))
            for dataset in unscored:
                rows = [score for score in scores if score.dataset == dataset.name]
                made_from = fingerprint(task, dataset)
                scoresheet.save(folder, TaskScores(task, dataset.name, digest, made_from, rows))
    sheet = scoresheet.publish(folder, PROTOCOLS, digest)
    done = "Scored" if missing else "Scored already:"
    lines = [f"{name} is absent: {reason}" for name, reason in absent.items()]
    last = f"{done} {checkpoint.url}; {storage.join(folder, 'scores.md')}"
    return "\n".join([scoresheet.plain(sheet), *lines, last])


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _datasets(config: EvaluateConfig) -> tuple[list[LabelledSet], dict[str, str]]:
    """Return the data sets that are there, and why each of the others is not."""
    references = expand(config.datasets)
    names = [name_of(reference) for reference in references]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"key 'datasets' has value {list(config.datasets)}: expected different names, but "
            f"{twice[0]!r} is listed twice"
        )
    found, absent = [], {}
    for reference, name in zip(references, names, strict=True):
        try:
            found.append(load_dataset(reference, Path(config.data) if config.data else None))
        except AbsentSetError as error:
            absent[name] = str(error)
    if not found:
        raise UnfinishedError(
            f"none of the {len(absent)} data sets is there: {next(iter(absent.values()))}; "
            "`python -m trainer.evaluate check` lists all of them"
        )
    return found, absent


def _settings(task: str, config: EvaluateConfig) -> dict[str, Any]:
    """Return the settings that a task's scores on one data set depend on."""
    others = ("datasets", *(f"{other}." for other in PROTOCOLS if other != task))
    return {k: v for k, v in fingerprint_fields(config).items() if not k.startswith(others)}


def _subjects(
    config: EvaluateConfig, encoder: "nn.Module", shape: "EncoderConfig"
) -> list[Subject]:
    from trainer.execution import device_type
    from trainer.models.vit import build_encoder

    extraction = Extraction(device_type(config.device), config.batch_size, config.num_workers)
    subjects = [encoder_subject("trained", encoder, shape, extraction)]
    for number in range(config.num_untrained):
        fresh = build_encoder(shape, derive(config.seed, "untrained", number))
        subjects.append(encoder_subject("untrained", fresh, shape, extraction))
    return [*subjects, pixels_subject()] if config.pixels else subjects


def _checked_config(path: str | None, overrides: Sequence[str]) -> EvaluateConfig:
    """Return the config of a check, which may be without a file and without a run."""
    if path is None or "=" in path:
        overrides = ["run=unused", *([path] if path else []), *overrides]
        return parse_config(config_class(), "{}", "the command line", overrides)
    return load_config(config_class(), path, overrides)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = cli.command_parser(
        "trainer.evaluate",
        "Score an encoder on labelled pictures that its training never saw.",
        config_class(),
    )
    parser.add_argument(
        "task", choices=[*PROTOCOLS, ALL, CHECK], help="what to score it by, or list data sets"
    )
    cli.add_config_arguments(parser, "config", "YAML file of the evaluation", optional=True)
    parsed = parser.parse_args(arguments)
    if parsed.task != CHECK and parsed.config is None:
        parser.error("the following arguments are required: config")
    cli.show_log()

    def work() -> str:
        if parsed.task == CHECK:
            return check(_checked_config(parsed.config, parsed.overrides))
        config = load_config(config_class(), parsed.config, parsed.overrides)
        return evaluate(list(PROTOCOLS) if parsed.task == ALL else [parsed.task], config)

    return cli.run_command(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
