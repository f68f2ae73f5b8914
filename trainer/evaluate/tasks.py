"""The tasks that an encoder is scored by, and what each is given.

A task is a function from an `Evaluation` to rows of the score sheet. kNN and logistic regression
work on frozen features, which are computed once for both; a task that trains through the encoder
(segmentation, fine-tuning) finds it in the evaluation's subjects. To add a task: write the
function, name it in `TASKS`, give its settings a section of that name in `EvaluateConfig`.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from trainer.evaluate import knn, logistic, metrics
from trainer.evaluate.datasets import LabelledSet
from trainer.evaluate.features import Subject
from trainer.evaluate.knn import KnnConfig
from trainer.evaluate.logistic import Features, LogisticConfig
from trainer.evaluate.metrics import Metric
from transforms.core.config import Config, no_fingerprint
from transforms.core.progress import bar
from transforms.core.scores import Score


class EvaluateConfig(Config):
    """What is scored, on what, and how."""

    run: str = no_fingerprint()
    """Folder or URL of the run; scores go to its `scores` folder."""
    checkpoint: str | None = no_fingerprint(None)
    """A checkpoint file or the folder of a training; null is the newest checkpoint of the run."""
    which: Literal["teacher", "student"] = "teacher"
    """Which of the checkpoint's two encoders is scored."""
    datasets: tuple[str, ...] = Field(("drawings", "fashion-mnist"), min_length=1)
    """Data sets: `drawings`, `fashion-mnist`, or `folder:PATH` for one's own pictures in
    PATH/train/CLASS/ and PATH/test/CLASS/ (PATH/val/CLASS/ if there is a validation split)."""
    num_untrained: NonNegativeInt = 3
    """Encoders with fresh weights that make up the baseline row; 0 leaves it out."""
    pixels: bool = True
    """Whether the bare pixels are scored as well."""
    seed: int = 0
    """Of the untrained encoders' weights."""
    device: Literal["auto", "cpu", "cuda"] = no_fingerprint("auto")
    """`auto` is CUDA where there is any and the CPU elsewhere; `cuda` insists on it."""
    batch_size: PositiveInt = no_fingerprint(256)
    """Pictures per forward pass."""
    num_workers: NonNegativeInt = no_fingerprint(0)
    """Processes that decode pictures; 0 decodes between two forward passes."""
    knn: KnnConfig = KnnConfig()
    logistic: LogisticConfig = LogisticConfig()


@dataclass(frozen=True)
class FrozenFeatures:
    """One subject's features of a data set."""

    train: Features
    val: Features
    test: Features


@dataclass(frozen=True)
class Evaluation:
    """What a task is given; features are computed when first asked for, and kept."""

    config: EvaluateConfig
    datasets: Sequence[LabelledSet]
    subjects: Sequence[Subject]
    _kept: dict[str, list[FrozenFeatures]] = field(default_factory=dict)

    def features(self, dataset: LabelledSet) -> list[FrozenFeatures]:
        """Features of a data set, one entry per subject."""
        if dataset.name not in self._kept:
            total = len(self.subjects) * sum(len(split) for split in dataset.splits.values())
            with bar(total, "pictures", f"features of {dataset.name}") as progress:
                self._kept[dataset.name] = [
                    FrozenFeatures(
                        **{
                            name: Features(subject.extract(split, progress.update), split.labels)
                            for name, split in dataset.splits.items()
                        }
                    )
                    for subject in self.subjects
                ]
        return self._kept[dataset.name]


Task = Callable[[Evaluation], list[Score]]
"""Scores every subject on every data set."""

Prediction = tuple[NDArray[np.int64], dict[str, Any]]
"""Classes of the test pictures [M], and what is worth keeping about how they came about (JSON)."""


@dataclass(frozen=True)
class FrozenProtocol:
    """A way to predict the test pictures' classes from frozen features."""

    predict: Callable[[FrozenFeatures, Metric, EvaluateConfig, Callable[[], object]], Prediction]
    """(features, metric, config, called after each step)."""
    num_steps: Callable[[EvaluateConfig], int]
    """Steps of one prediction, for the progress bar."""


def _knn(
    features: FrozenFeatures, metric: Metric, config: EvaluateConfig, tick: Callable[[], object]
) -> Prediction:
    values = np.concatenate([features.train.values, features.val.values])
    labels = np.concatenate([features.train.labels, features.val.labels])
    predictions = knn.predict(values, labels, features.test.values, config.knn)
    tick()
    return predictions, {}


def _logistic(
    features: FrozenFeatures, metric: Metric, config: EvaluateConfig, tick: Callable[[], object]
) -> Prediction:
    fitted = logistic.fit_and_predict(
        features.train, features.val, features.test.values, metric, config.logistic, tick
    )
    details = {
        "strength": fitted.strength,
        "validation": round(fitted.validation, 2),
        "iterations": fitted.num_iterations,
    }
    return fitted.predictions, details


def score_frozen(protocol: FrozenProtocol, name: str, evaluation: Evaluation) -> list[Score]:
    """Rows of a protocol on frozen features: one per data set and kind of subject."""
    config = evaluation.config
    features = [evaluation.features(dataset) for dataset in evaluation.datasets]
    num_trials = len(evaluation.datasets) * len(evaluation.subjects)
    rows = []
    with bar(num_trials * protocol.num_steps(config), "fits", name) as progress:
        for dataset, by_subject in zip(evaluation.datasets, features, strict=True):
            scored: dict[str, list[tuple[float, float, dict[str, Any]]]] = {}
            for subject, frozen in zip(evaluation.subjects, by_subject, strict=True):
                predictions, details = protocol.predict(
                    frozen, dataset.metric, config, progress.update
                )
                value, error = metrics.score(predictions, dataset.test.labels, dataset.metric)
                scored.setdefault(subject.kind, []).append((value, error, details))
            rows += [_row(kind, name, dataset, trials) for kind, trials in scored.items()]
    return rows


def _row(
    kind: str,
    protocol: str,
    dataset: LabelledSet,
    trials: Sequence[tuple[float, float, dict[str, Any]]],
) -> Score:
    values = [value for value, _, _ in trials]
    return Score(
        encoder=kind,
        dataset=dataset.name,
        protocol=protocol,
        metric=dataset.metric,
        value=statistics.mean(values),
        error=statistics.mean(error for _, error, _ in trials),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        values=values,
        chance=metrics.chance(dataset.test.labels, dataset.metric),
        num_classes=len(dataset.classes),
        num_train=len(dataset.train) + len(dataset.val),
        num_test=len(dataset.test),
        details=[details for _, _, details in trials],
    )


TASKS: dict[str, Task] = {
    "knn": partial(score_frozen, FrozenProtocol(_knn, lambda config: 1), "knn"),
    "logistic": partial(
        score_frozen,
        FrozenProtocol(_logistic, lambda config: config.logistic.num_strengths + 1),
        "logistic",
    ),
}
"""Every task by the name that the command line knows it by."""
