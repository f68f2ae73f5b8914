"""Scoring: from a model and data sets to the score sheet; only what is missing is computed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer import distributed
from trainer.evaluate import scoresheet
from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.datasets import (
    AbsentSetError,
    LabelledSet,
    expand,
    load_dataset,
    name_of,
)
from trainer.evaluate.features import Extraction, Subject, encoder_subject, pixels_subject
from trainer.evaluate.models import Model, load_model, untrained_seed
from trainer.evaluate.protocols.base import Evaluation, Protocol
from trainer.evaluate.scoresheet import TaskScores
from transforms.core import storage
from transforms.core.config import fingerprint_fields
from transforms.core.errors import ConfigError, UnfinishedError

log = logging.getLogger(__name__)

VERSION = 1
"""Version of all protocols. Raise it when all scores change: old ones are computed again."""

Protocols = Mapping[str, Protocol[Any]]


@dataclass(frozen=True)
class Job:
    """What one call of the command scores."""

    config: EvaluateConfig
    protocols: Protocols
    """All protocols, since settings of the others do not matter to one of them."""
    model: Model
    datasets: list[LabelledSet]
    absent: dict[str, str]
    """Data set that is not there -> why."""

    @property
    def folder(self) -> str:
        """Folder of the scores."""
        return storage.join(self.config.run, "scores")

    def fingerprint(self, task: str, dataset: LabelledSet) -> str:
        """Return the digest of what a task's scores on a data set depend on."""
        version = VERSION + self.protocols[task].version - 1
        settings = self._settings(task)
        source = self.protocols[task].source(self.config)
        identity = f"{dataset.identity} {source}" if source else dataset.identity
        return scoresheet.fingerprint(task, settings, self.model.digest, identity, version)

    def _settings(self, task: str) -> dict[str, Any]:
        """Return the settings that a task's scores on one data set depend on."""
        others = ("datasets", *(f"{other}." for other in self.protocols if other != task))
        fields = fingerprint_fields(self.config)
        # A reduced precision rounds; the default is left out, since older scores do not have it.
        fields |= {"precision": self.config.precision} if self.config.precision != "fp32" else {}
        return {key: value for key, value in fields.items() if not key.startswith(others)}

    def missing(self, tasks: Sequence[str]) -> dict[str, list[str]]:
        """Return the names of data sets that each task has to score."""

        def is_scored(task: str, dataset: LabelledSet) -> bool:
            stored = scoresheet.load(self.folder, task, dataset.name)
            return stored is not None and stored.fingerprint == self.fingerprint(task, dataset)

        found = {}
        for task in tasks:
            protocol = self.protocols[task]
            found[task] = [
                dataset.name
                for dataset in self.datasets
                if protocol.applies(dataset, protocol.section(self.config))
                and not is_scored(task, dataset)
            ]
        return {task: names for task, names in found.items() if names}

    def score(self, task: str, names: Sequence[str], evaluation: Evaluation) -> None:
        """Score a task on data sets and write its files; all ranks call this together."""
        datasets = [dataset for dataset in self.datasets if dataset.name in names]
        for dataset in datasets:
            # One data set after another: what is written stays if a later one is interrupted.
            scores = self.protocols[task].run(replace(evaluation, datasets=[dataset]))
            if distributed.rank() == 0:
                made_from = self.fingerprint(task, dataset)
                rows = TaskScores(task, dataset.name, self.model.digest, made_from, scores)
                scoresheet.save(self.folder, rows)


def evaluate(tasks: Sequence[str], config: EvaluateConfig, protocols: Protocols) -> str:
    """Compute missing scores, write the score sheet and return it as text.

    Args:
        tasks: Names of protocols.
        config: What is scored, and how.
        protocols: All protocols.

    Raises:
        ConfigError: A setting is wrong.
        StorageError: There is no checkpoint, or storage failed.
        UnfinishedError: None of the data sets is there, or the tasks score none of them.
    """
    if config.model is not None and config.checkpoint is not None:
        raise ConfigError("keys 'model' and 'checkpoint' are both set: expected one of them")
    datasets, absent = load_datasets(config)
    reference = config.model or config.checkpoint or config.run
    without = {task: reason for task in tasks if (reason := protocols[task].absence(config))}
    if len(without) == len(tasks):
        raise UnfinishedError("; ".join(without.values()))
    absent |= without
    tasks = [task for task in tasks if task not in without]
    _check_any_applies([protocols[task] for task in tasks], config, datasets)
    job = Job(config, protocols, load_model(reference, config.which), datasets, absent)
    # The ranks may see files at different times, so that rank 0 decides.
    missing = distributed.gather_objects(job.missing(tasks))[0]
    if missing:
        storage.check_writable(job.folder)
        cache = config.features or storage.join(config.run, "features")
        evaluation = Evaluation(config, datasets, subjects_of(config, job.model), cache)
        for task, names in missing.items():
            job.score(task, names, evaluation)
    if distributed.rank() != 0:
        return ""
    sheet = scoresheet.publish(job.folder, protocols, job.model.digest, absent)
    done = "Scored" if missing else "Scored already:"
    lines = [f"{name} is absent: {reason}" for name, reason in absent.items()]
    last = f"{done} {job.model.url}; {storage.join(job.folder, 'scores.md')}"
    return "\n".join([scoresheet.plain(sheet), *lines, last])


def _check_any_applies(
    protocols: Sequence[Protocol[Any]], config: EvaluateConfig, datasets: Sequence[LabelledSet]
) -> None:
    """Raise an `UnfinishedError` if the protocols apply to none of the data sets."""
    sections = [protocol.section(config) for protocol in protocols]
    pairs = list(zip(protocols, sections, strict=True))
    if not any(protocol.applies(d, section) for protocol, section in pairs for d in datasets):
        names = ", ".join(dataset.name for dataset in datasets)
        reasons = [
            f"{protocol.name} scores none of the data sets {names}: it takes "
            f"{protocol.takes(section)}"
            for protocol, section in pairs
        ]
        raise UnfinishedError("; ".join(reasons))


def load_datasets(config: EvaluateConfig) -> tuple[list[LabelledSet], dict[str, str]]:
    """Return the data sets that are there, and why each of the others is not.

    Raises:
        ConfigError: A reference is wrong, or two data sets have one name.
        UnfinishedError: None is there.
    """
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


def subjects_of(config: EvaluateConfig, model: Model) -> list[Subject]:
    """Return what is scored: the model, the same architecture with fresh weights, and pixels."""
    import torch

    from trainer.execution import device_type

    device = device_type(config.device)
    if device == "cuda" and distributed.is_on():
        device_name = f"cuda:{torch.cuda.current_device()}"
    else:
        device_name = device
    extraction = Extraction(device_name, config.batch_size, config.num_workers, config.precision)
    subjects = [encoder_subject("trained", model.encoder, model.input, extraction, model.digest)]
    for number in range(config.num_untrained):
        seed = untrained_seed(config.seed, number)
        digest = f"untrained {model.architecture} {seed}"
        fresh = model.fresh(seed)
        subjects.append(encoder_subject("untrained", fresh, model.input, extraction, digest))
    return [*subjects, pixels_subject()] if config.pixels else subjects
