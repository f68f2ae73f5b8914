"""Protocols that classify pictures by frozen features, such as kNN and logistic regression."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from trainer.evaluate import metrics
from trainer.evaluate.datasets import LabelledSet
from trainer.evaluate.features import Features, FrozenFeatures
from trainer.evaluate.metrics import Interval, Metric
from trainer.evaluate.protocols.base import Evaluation, FeatureSet, Protocol, SettingsT
from transforms.core.progress import bar
from transforms.core.scores import Score

Details = dict[str, Any]
"""What a protocol chose, such as the L2 strength; JSON values for the score sheet."""
Prediction = tuple[NDArray[Any], Details]
"""Classes of the test pictures, [M], or for the mAP a value per class, [M, C]; and details."""


class Trial(NamedTuple):
    """The result of one subject on one data set."""

    predictions: NDArray[Any]
    details: Details
    seconds: float


@dataclass(frozen=True)
class FrozenProtocol(Protocol[SettingsT]):
    """A protocol that predicts the classes of the test pictures from frozen features."""

    predict: Callable[[FrozenFeatures, Metric, SettingsT, Callable[[], object]], Prediction]
    """(features, metric, settings, callback after each step) -> prediction."""
    num_steps: Callable[[SettingsT], int] = lambda settings: 1
    """Number of steps of one prediction, for the progress bar."""

    def scores(self, evaluation: Evaluation, settings: SettingsT) -> list[Score]:
        """Return one score per data set and kind of subject; rank 0 predicts."""
        from trainer import distributed

        for dataset in evaluation.datasets:
            evaluation.prepare(dataset)

        def work() -> list[Score]:
            return self._scores(evaluation, settings) if distributed.rank() == 0 else []

        return distributed.gather_objects(distributed.run_on_all_ranks(work))[0]

    def _scores(self, evaluation: Evaluation, settings: SettingsT) -> list[Score]:
        datasets, subjects = evaluation.datasets, evaluation.subjects
        scores = []
        with bar(
            len(datasets) * len(subjects) * self.num_steps(settings), "fits", self.name
        ) as progress:
            for dataset in datasets:
                features = evaluation.features(dataset)
                trials: dict[str, list[Trial]] = {}
                for subject, frozen in zip(subjects, features.by_subject, strict=True):
                    started = time.monotonic()
                    predictions, details = self.predict(
                        frozen, dataset.metric, settings, progress.update
                    )
                    trial = Trial(predictions, details, time.monotonic() - started)
                    trials.setdefault(subject.kind, []).append(trial)
                scores += [
                    mean_score(kind, self.name, dataset, features, of_kind)
                    for kind, of_kind in trials.items()
                ]
        return scores


def mean_score(
    kind: str,
    protocol: str,
    dataset: LabelledSet,
    features: FeatureSet,
    trials: Sequence[Trial],
    interval_of: Callable[[Sequence[float]], Interval] | None = None,
) -> Score:
    """Return the mean over the subjects of one kind, which differ in their seeds.

    Args:
        kind: Column of the sheet.
        protocol: Name of the protocol.
        dataset: What was scored.
        features: Its features.
        trials: The result of each subject.
        interval_of: From the scores of the trials to the interval of their mean; None is a
            bootstrap over the test pictures.
    """
    (train, val, test), metric = dataset_rows(features), dataset.metric
    found = [trial.predictions for trial in trials]
    values = [metrics.value(predictions, test.labels, metric) for predictions in found]
    if interval_of is None:
        interval = metrics.bootstrap(found, test.labels, metric)
    else:
        interval = interval_of(values)
    error = interval.error
    if metric in metrics.CLASS_METRICS:
        error = statistics.mean(metrics.score(p, test.labels, metric)[1] for p in found)
    return Score(
        encoder=kind,
        dataset=dataset.name,
        protocol=protocol,
        metric=metric,
        value=statistics.mean(values),
        error=error,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        values=values,
        chance=metrics.chance(test.labels, metric),
        num_classes=len(dataset.classes),
        num_train=len(train.labels) + len(val.labels),
        num_test=len(test.labels),
        details=[trial.details for trial in trials],
        interval=[interval.low, interval.high],
        unreadable=features.unreadable,
        features_s=round(features.seconds[kind], 2),
        protocol_s=round(sum(trial.seconds for trial in trials), 2),
    )


def dataset_rows(features: FeatureSet) -> tuple[Features, Features, Features]:
    """Return train, val and test of any subject: all have the same rows."""
    first = features.by_subject[0]
    return first.train, first.val, first.test
