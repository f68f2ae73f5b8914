"""Linear probe as on ImageNet: a linear layer on the frozen encoder, trained on augmented pictures.

Source: paper section 4 and the authors' code. The encoder sees random crops, mirrored half of the
time; SGD with momentum, no weight decay, a cosine to 0. All learning rates, with and without a
batch norm, are trained side by side on the same features, see `trainer.evaluate.linear_heads`.

The paper takes the head that is best on the test pictures, which is optimistic. Here the head is
chosen on the validation split, which for ImageNet is 1 % of the training pictures and is not
trained on; the paper's choice is in the details of the score. Of equal heads the first is taken:
without batch norm before with, and rates in the order of the settings.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from trainer.evaluate import metrics
from trainer.evaluate.datasets import LabelledSet
from trainer.evaluate.features import Features, FrozenFeatures, Subject
from trainer.evaluate.protocols.base import Evaluation, FeatureSet, Protocol
from trainer.evaluate.protocols.frozen import Trial, mean_score
from transforms.core.config import Config, no_fingerprint
from transforms.core.scores import Score

if TYPE_CHECKING:
    from trainer.evaluate.linear_probe import Probe

NAME = "linear"


class LinearConfig(Config):
    """Settings of the linear probe; the defaults are the paper's."""

    datasets: tuple[str, ...] = no_fingerprint(("imagenet-1k",))
    """Names of the data sets that it scores, of those of the evaluation. It takes long: the paper
    scores only ImageNet by it."""
    epochs: PositiveInt = 90
    """Passes over the training pictures (paper: 90)."""
    batch_size: PositiveInt = 1024
    """Pictures per step over all ranks (paper: 1,024)."""
    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    )
    """Learning rates per 256 pictures of a batch (paper: 1e-3 to 0.5); each is tried with and
    without a batch norm."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD (paper: 0.9)."""
    num_untrained: NonNegativeInt = 0
    """Encoders with fresh weights that are scored too, of those of the evaluation; each takes as
    long as the trained one."""
    save_every_s: NonNegativeFloat = no_fingerprint(600.0)
    """Seconds between two states, from which a start after a kill continues."""


@dataclass(frozen=True)
class LinearProtocol(Protocol[LinearConfig]):
    """The linear probe."""

    def applies(self, dataset: LabelledSet, settings: LinearConfig) -> bool:
        """Return whether the settings name the data set."""
        return super().applies(dataset, settings) and dataset.name in settings.datasets

    def takes(self, settings: LinearConfig) -> str:
        """Return which data sets the settings name."""
        return f"those that linear.datasets names, [{', '.join(settings.datasets)}]"

    def scores(self, evaluation: Evaluation, settings: LinearConfig) -> list[Score]:
        """Return one score per data set and kind of encoder; pixels have none."""
        return [
            score
            for dataset in evaluation.datasets
            for score in _scores(evaluation, dataset, settings)
        ]


def _scores(evaluation: Evaluation, dataset: LabelledSet, settings: LinearConfig) -> list[Score]:
    """Return the scores on one data set; all ranks call this together."""
    from trainer.evaluate.linear_probe import Probe

    trials: dict[str, list[Trial]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    unreadable = set[str]()
    for subject in _encoders(evaluation, settings):
        probe = Probe(evaluation, dataset, subject, settings)
        probe.train()
        trial, labels = _choose(probe, dataset.metric)
        trials.setdefault(subject.kind, []).append(trial)
        unreadable |= probe.all_unreadable()
    features = FeatureSet(
        [_without_values(dataset, labels)], sorted(unreadable), dict.fromkeys(trials, 0.0)
    )
    return [mean_score(kind, NAME, dataset, features, own) for kind, own in trials.items()]


def _encoders(evaluation: Evaluation, settings: LinearConfig) -> list[Subject]:
    untrained = [subject for subject in evaluation.subjects if subject.kind == "untrained"]
    left_out = untrained[settings.num_untrained :]
    return [s for s in evaluation.subjects if s.encoder is not None and s not in left_out]


def _choose(probe: "Probe", metric: metrics.Metric) -> tuple[Trial, dict[str, NDArray[np.int64]]]:
    """Return the trial with the head that is best on validation, and the labels of the splits."""
    started, rates = time.monotonic(), probe.settings.learning_rates
    classes, labels = {}, {}
    for name in ("val", "test"):
        classes[name], labels[name] = probe.predict(name)
    reached = {
        name: [metrics.value(of_head, labels[name], metric) for of_head in classes[name]]
        for name in classes
    }

    def best(name: str) -> int:
        return int(np.argmax(reached[name]))

    def described(head: int) -> dict[str, Any]:
        """Return how a head was trained, and what it reaches on the splits."""
        return {
            "learning_rate": rates[head % len(rates)],
            "batchnorm": probe.heads.heads[head].normed,
            "validation": round(reached["val"][head], 2),
            "test": round(reached["test"][head], 2),
        }

    details = {**described(best("val")), "best_on_test": described(best("test"))}
    seconds = probe.seconds + time.monotonic() - started
    return Trial(classes["test"][best("val")], details, seconds), labels


def _without_values(dataset: LabelledSet, labels: dict[str, NDArray[np.int64]]) -> FrozenFeatures:
    """Return the rows of a data set, whose features are never all in memory."""

    def rows(of_split: NDArray[np.int64]) -> Features:
        return Features(np.empty((len(of_split), 0), np.float32), of_split)

    return FrozenFeatures(rows(dataset.train.labels), rows(labels["val"]), rows(labels["test"]))


PROTOCOL = LinearProtocol(NAME, LinearConfig)
