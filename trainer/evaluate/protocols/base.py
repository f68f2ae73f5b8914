"""The interface of an evaluation protocol, and what a protocol works on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.datasets import LabelledSet
from trainer.evaluate.features import Features, FrozenFeatures, Subject
from transforms.core.config import Config
from transforms.core.progress import bar
from transforms.core.scores import Score

SettingsT = TypeVar("SettingsT", bound=Config)


@dataclass(frozen=True)
class Evaluation:
    """The encoders to score and the data sets to score them on.

    Protocols on frozen features share those of `features`; a protocol that trains through an
    encoder finds it in its subject.
    """

    config: EvaluateConfig
    datasets: Sequence[LabelledSet]
    subjects: Sequence[Subject]
    _cache: dict[str, list[FrozenFeatures]] = field(default_factory=dict)

    def features(self, dataset: LabelledSet) -> list[FrozenFeatures]:
        """Return the features of a data set, one entry per subject; computed once."""
        if dataset.name not in self._cache:
            total = len(self.subjects) * sum(len(split) for split in dataset.splits.values())
            with bar(total, "pictures", f"features of {dataset.name}") as progress:
                self._cache[dataset.name] = [
                    FrozenFeatures(
                        **{
                            name: Features(subject.extract(split, progress.update), split.labels)
                            for name, split in dataset.splits.items()
                        }
                    )
                    for subject in self.subjects
                ]
        return self._cache[dataset.name]


@dataclass(frozen=True)
class Protocol(ABC, Generic[SettingsT]):
    """A way to score encoders on labelled pictures."""

    name: str
    """Name on the command line and on the score sheet, and of the config section."""
    settings: type[SettingsT]
    """The config section."""

    @abstractmethod
    def scores(self, evaluation: Evaluation, settings: SettingsT) -> list[Score]:
        """Return the scores of every kind of subject on every data set.

        Args:
            evaluation: What to score.
            settings: The protocol's section of `evaluation.config`.
        """

    def run(self, evaluation: Evaluation) -> list[Score]:
        """Return the scores with the settings of the evaluation's config."""
        return self.scores(evaluation, getattr(evaluation.config, self.name))
