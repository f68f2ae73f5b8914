"""Protocols that classify pictures by frozen features, such as kNN and logistic regression."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate import metrics
from trainer.evaluate.datasets import LabelledSet
from trainer.evaluate.features import FrozenFeatures
from trainer.evaluate.metrics import Metric
from trainer.evaluate.protocols.base import Evaluation, Protocol, SettingsT
from transforms.core.progress import bar
from transforms.core.scores import Score

Details = dict[str, Any]
"""What a protocol chose, such as the L2 strength; JSON values for the score sheet."""
Prediction = tuple[NDArray[np.int64], Details]
"""Classes of the test pictures, [M], and details."""


class Trial(NamedTuple):
    """The result of one subject on one data set."""

    value: float
    """In percent."""
    error: float
    """Standard error in percent."""
    details: Details


@dataclass(frozen=True)
class FrozenProtocol(Protocol[SettingsT]):
    """A protocol that predicts the classes of the test pictures from frozen features."""

    predict: Callable[[FrozenFeatures, Metric, SettingsT, Callable[[], object]], Prediction]
    """(features, metric, settings, callback after each step) -> prediction."""
    num_steps: Callable[[SettingsT], int] = lambda settings: 1
    """Number of steps of one prediction, for the progress bar."""

    def scores(self, evaluation: Evaluation, settings: SettingsT) -> list[Score]:
        """Return one score per data set and kind of subject."""
        datasets, subjects = evaluation.datasets, evaluation.subjects
        features = [evaluation.features(dataset) for dataset in datasets]
        total = len(datasets) * len(subjects) * self.num_steps(settings)
        scores = []
        with bar(total, "fits", self.name) as progress:
            for dataset, by_subject in zip(datasets, features, strict=True):
                trials: dict[str, list[Trial]] = {}
                for subject, frozen in zip(subjects, by_subject, strict=True):
                    predictions, details = self.predict(
                        frozen, dataset.metric, settings, progress.update
                    )
                    labels = dataset.test.labels
                    value, error = metrics.score(predictions, labels, dataset.metric)
                    trials.setdefault(subject.kind, []).append(Trial(value, error, details))
                scores += [
                    mean_score(kind, self.name, dataset, of_kind)
                    for kind, of_kind in trials.items()
                ]
        return scores


def mean_score(kind: str, protocol: str, dataset: LabelledSet, trials: Sequence[Trial]) -> Score:
    """Return the mean over the subjects of one kind, which differ in their seeds."""
    values = [trial.value for trial in trials]
    return Score(
        encoder=kind,
        dataset=dataset.name,
        protocol=protocol,
        metric=dataset.metric,
        value=statistics.mean(values),
        error=statistics.mean(trial.error for trial in trials),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        values=values,
        chance=metrics.chance(dataset.test.labels, dataset.metric),
        num_classes=len(dataset.classes),
        num_train=len(dataset.train) + len(dataset.val),
        num_test=len(dataset.test),
        details=[trial.details for trial in trials],
    )
