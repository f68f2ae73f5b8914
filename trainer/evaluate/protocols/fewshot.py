"""Few-shot classification on frozen features: 1, 2, 5 and 10 labelled pictures per class.

The paper has no such score. Source: SimpleShot (Wang et al. 2019, "L2N"): features are scaled to
length 1, and a test picture has the class whose mean over the labelled pictures is nearest. Nothing
is fitted or chosen, so the labelled pictures are drawn from training and validation pictures
together. Draws are nested: the pictures of 2 shots are among those of 5.

The score is the mean over several draws, its interval that of Student's t over the draws. A class
with fewer pictures gives all it has, and `details` says how many such classes there are.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from trainer.evaluate.datasets import LabelledSet
from trainer.evaluate.features import FrozenFeatures
from trainer.evaluate.metrics import COVERAGE, Interval
from trainer.evaluate.protocols.base import Evaluation, FeatureSet, Protocol
from trainer.evaluate.protocols.frozen import Trial, mean_score
from transforms.core.config import Config
from transforms.core.progress import bar
from transforms.core.scores import Score
from transforms.core.seeding import derive


class FewshotConfig(Config):
    """Settings of few-shot classification."""

    shots: tuple[PositiveInt, ...] = Field((1, 2, 5, 10), min_length=1)
    """Labelled pictures per class; one row of the sheet for each number."""
    num_draws: int = Field(10, ge=2)
    """Random choices of the labelled pictures."""


def draw(labels: NDArray[np.int64], shots: int, number: int) -> NDArray[np.int64]:
    """Return the rows of the labelled pictures of a draw: `shots` of each class, or all it has.

    Args:
        labels: Classes of the pictures, [N].
        shots: Pictures per class.
        number: Number of the draw.
    """
    order = np.random.default_rng(derive("fewshot", number)).permutation(len(labels))
    return np.concatenate([order[labels[order] == own][:shots] for own in np.unique(labels)])


def nearest_mean(
    train: NDArray[np.float32],  # [N, D]
    labels: NDArray[np.int64],  # [N]
    test: NDArray[np.float32],  # [M, D]
) -> NDArray[np.int64]:
    """Return the class with the nearest mean of each test picture, [M]; all lengths are made 1."""
    classes = np.unique(labels)
    scaled = _scaled(train)
    means = np.stack([scaled[labels == own].mean(axis=0) for own in classes])
    # The squared distance without the length of the test picture, which is the same for all means.
    distances = (means**2).sum(axis=1) - 2 * _scaled(test) @ means.T
    found: NDArray[np.int64] = classes[distances.argmin(axis=1)]
    return found


@dataclass(frozen=True)
class Fewshot(Protocol[FewshotConfig]):
    """Scores encoders with few labelled pictures."""

    def scores(self, evaluation: Evaluation, settings: FewshotConfig) -> list[Score]:
        """Return a score per data set, number of shots and kind of subject; rank 0 predicts."""
        from trainer import distributed

        for dataset in evaluation.datasets:
            evaluation.prepare(dataset)

        def work() -> list[Score]:
            if distributed.rank() != 0:
                return []
            return [row for d in evaluation.datasets for row in _scores(evaluation, d, settings)]

        return distributed.gather_objects(distributed.run_on_all_ranks(work))[0]


def _scores(evaluation: Evaluation, dataset: LabelledSet, settings: FewshotConfig) -> list[Score]:
    features, rows = evaluation.features(dataset), []
    total = len(settings.shots) * len(evaluation.subjects)
    with bar(total, "fits", f"fewshot {dataset.name}") as progress:
        for shots in settings.shots:
            trials: dict[str, list[list[Trial]]] = {}
            for subject, frozen in zip(evaluation.subjects, features.by_subject, strict=True):
                trials.setdefault(subject.kind, []).append(_trials(frozen, shots, settings))
                progress.update()
            rows += [
                _score(kind, dataset, features, shots, of_kind) for kind, of_kind in trials.items()
            ]
    return rows


def _trials(features: FrozenFeatures, shots: int, settings: FewshotConfig) -> list[Trial]:
    """Return the result of each draw."""
    values = np.concatenate([features.train.values, features.val.values])
    labels = np.concatenate([features.train.labels, features.val.labels])
    details: dict[str, Any] = {"shots": shots, "draws": settings.num_draws}
    few = int((np.unique(labels, return_counts=True)[1] < shots).sum())
    if few:
        details["note"] = f"{few} classes have fewer than {shots} pictures: they give all they have"
    found = []
    for number in range(settings.num_draws):
        started, chosen = time.monotonic(), draw(labels, shots, number)
        predictions = nearest_mean(values[chosen], labels[chosen], features.test.values)
        found.append(Trial(predictions, details, time.monotonic() - started))
    return found


def _score(
    kind: str,
    dataset: LabelledSet,
    features: FeatureSet,
    shots: int,
    trials: Sequence[Sequence[Trial]],
) -> Score:
    """Return the mean over subjects of one kind and draws.

    Args:
        kind: Column of the sheet.
        dataset: What was scored.
        features: Its features.
        shots: Labelled pictures per class.
        trials: For each subject, the result of each draw.
    """
    everything, draws = [one for own in trials for one in own], len(trials[0])
    row = mean_score(
        kind, "fewshot", dataset, features, everything, partial(interval_over_draws, draws=draws)
    )
    return replace(
        row,
        metric=f"{dataset.metric}, {shots} shot{'s' if shots > 1 else ''}",
        details=[own[0].details for own in trials],
    )


def interval_over_draws(values: Sequence[float], draws: int) -> Interval:
    """Return Student's interval of the mean score, within 0 and 100.

    Args:
        values: Score of each draw of the first subject, then of the second, and so on.
        draws: Draws of each subject, the same for all.
    """
    from scipy.stats import t

    means = [statistics.mean(values[number::draws]) for number in range(draws)]
    mean, error = statistics.mean(values), statistics.stdev(means) / math.sqrt(draws)
    half = float(t.ppf((1 + COVERAGE) / 2, draws - 1)) * error
    return Interval(max(mean - half, 0), min(mean + half, 100), error)


def _scaled(features: NDArray[np.float32]) -> NDArray[np.float64]:
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = rows / np.where(lengths > 0, lengths, 1)
    return scaled


PROTOCOL = Fewshot("fewshot", FewshotConfig)
