"""The interface of an evaluation protocol, and what a protocol works on.

A protocol on frozen features is a `protocols.frozen.FrozenProtocol`: a function from features to
predictions. Any other protocol is a subclass of `Protocol` and finds pictures and labels in
`evaluation.datasets` and networks in `evaluation.subjects`. Over several ranks every rank calls
`scores`, and all of them return the same.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from trainer.evaluate import feature_cache
from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.datasets import Kind, LabelledSet
from trainer.evaluate.features import Extracted, Features, FrozenFeatures, Subject
from transforms.core.config import Config
from transforms.core.errors import ConfigError
from transforms.core.progress import bar
from transforms.core.scores import Score

log = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT", bound=Config)


@dataclass(frozen=True)
class FeatureSet:
    """Frozen features of a data set."""

    by_subject: list[FrozenFeatures]
    """One entry per subject."""
    unreadable: list[str]
    """Pictures that cannot be decoded; they are in none of the features."""
    seconds: dict[str, float]
    """Kind of subject -> seconds that its features took; little if they were in the cache."""


@dataclass(frozen=True)
class Evaluation:
    """The encoders to score and the data sets to score them on.

    Protocols on frozen features share those of `features`; a protocol that trains through an
    encoder finds it in its subject.
    """

    config: EvaluateConfig
    datasets: Sequence[LabelledSet]
    subjects: Sequence[Subject]
    cache: str | None = None
    """Folder of features on disk; None keeps them in memory alone."""
    _features: dict[str, FeatureSet] = field(default_factory=dict)

    def prepare(self, dataset: LabelledSet) -> None:
        """Compute the features of a data set on all ranks; all ranks call this together."""
        from trainer import distributed

        if self.cache is not None and dataset.name not in self._features:
            distributed.run_on_all_ranks(lambda: self._compute(dataset))

    def features(self, dataset: LabelledSet) -> FeatureSet:
        """Return the features of a data set; computed once, by `prepare` if it was called.

        Raises:
            ConfigError: No picture of some split can be decoded.
        """
        if dataset.name not in self._features:
            self._features[dataset.name] = self._read(dataset)
        return self._features[dataset.name]

    def _compute(self, dataset: LabelledSet) -> None:
        for subject in self.subjects:
            started = time.monotonic()
            total = sum(len(split) for split in dataset.splits.values())
            with bar(total, "pictures", f"features of {dataset.name}, {subject.kind}") as progress:
                for name, split in dataset.splits.items():
                    if subject.digest and self.cache is not None:
                        folder = feature_cache.folder_of(self.cache, subject, dataset, name)
                        feature_cache.compute(folder, subject, split, progress.update)
            self._note(dataset, subject, time.monotonic() - started)

    def _read(self, dataset: LabelledSet) -> FeatureSet:
        found, unreadable = [], dict[str, None]()
        for subject in self.subjects:
            started, parts = time.monotonic(), {}
            for name, split in dataset.splits.items():
                if subject.digest and self.cache is not None:
                    folder = feature_cache.folder_of(self.cache, subject, dataset, name)
                    extracted = feature_cache.read(folder, subject, split)
                else:
                    extracted = subject.extract(split.pictures, lambda _: None)
                lost = [i for i in range(len(split)) if not extracted.readable[i]]
                unreadable.update(dict.fromkeys(f"{name}: {split.name(i)}" for i in lost))
                parts[name] = _readable(dataset, name, extracted)
            found.append(FrozenFeatures(**parts))
            self._note(dataset, subject, time.monotonic() - started)
        for name in unreadable:
            log.warning("cannot be decoded and is left out of %s: %s", dataset.name, name)
        seconds = {
            subject.kind: self._seconds.get((dataset.name, subject.kind), 0.0)
            for subject in self.subjects
        }
        return FeatureSet(found, list(unreadable), seconds)

    def _note(self, dataset: LabelledSet, subject: Subject, seconds: float) -> None:
        key = dataset.name, subject.kind
        self._seconds[key] = self._seconds.get(key, 0.0) + seconds

    _seconds: dict[tuple[str, str], float] = field(default_factory=dict)


def _readable(dataset: LabelledSet, name: str, extracted: Extracted) -> Features:
    """Return the features and labels of the pictures that could be decoded."""
    if not extracted.readable.any():
        raise ConfigError(f"no picture of {name} in data set {dataset.name!r} can be decoded")
    labels = dataset.splits[name].labels
    return Features(extracted.values[extracted.readable], labels[extracted.readable])


@dataclass(frozen=True)
class Protocol(ABC, Generic[SettingsT]):
    """A way to score encoders on labelled pictures."""

    name: str
    """Name on the command line and on the score sheet, and of the config section."""
    settings: type[SettingsT]
    """The config section."""
    kinds: tuple[Kind, ...] = field(default=("classification",), kw_only=True)
    """Kinds of data sets that it scores; others are not in its rows."""
    version: int = field(default=1, kw_only=True)
    """Raise it when scores of the protocol change, so that old ones are computed again."""

    def applies(self, dataset: LabelledSet, settings: SettingsT) -> bool:
        """Return whether the protocol scores a data set; a subclass may leave out more."""
        return dataset.kind in self.kinds

    def takes(self, settings: SettingsT) -> str:
        """Return which data sets the protocol applies to; part of a message."""
        return f"data sets for {' and '.join(self.kinds)}"

    def absence(self, config: EvaluateConfig) -> str | None:
        """Return why the protocol cannot score anything, None if it can; a line of the output."""
        return None

    def source(self, config: EvaluateConfig) -> str:
        """Return the digest of what scores depend on besides the model, data set and settings."""
        return ""

    @abstractmethod
    def scores(self, evaluation: Evaluation, settings: SettingsT) -> list[Score]:
        """Return the scores of every kind of subject on every data set.

        All ranks call this together, and all return the same.

        Args:
            evaluation: What to score; only data sets that the protocol applies to.
            settings: The protocol's section of `evaluation.config`.
        """

    def section(self, config: EvaluateConfig) -> SettingsT:
        """Return the protocol's section of a config."""
        section: SettingsT = getattr(config, self.name)
        return section

    def run(self, evaluation: Evaluation) -> list[Score]:
        """Return the scores with the settings of the evaluation's config."""
        return self.scores(evaluation, self.section(evaluation.config))
