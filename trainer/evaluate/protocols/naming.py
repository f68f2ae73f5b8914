"""Naming: pictures are named by the nearest of the run's own generated images.

The paper has no such score. The label of a generated image is the concept of its caption, so no
human label is used except to check the names. Pictures whose thing is no concept of the run are
left out. As in `knn`, the 20 nearest images by cosine similarity vote with weight
exp(similarity / temperature); a name is right if its concept has the most votes (top-1), or is
among the five with the most (top-5).

The score is that of the test split. Nothing is trained on the other splits either, so their
pictures together are the validation pictures: choose settings by them. `details` has their score,
and `generated`: how often the concept of a generated image is named by the images of other
captions, which needs no pictures but the run's own.

Pixels are 32x32 here, minus the mean of the generated images: without it, all are alike.
"""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from trainer.evaluate import feature_cache, metrics
from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.datasets import LabelledSet, Split
from trainer.evaluate.features import Extracted, Subject, pixels_subject
from trainer.evaluate.generated import GeneratedSet, identity_of, labels_of, load_generated
from trainer.evaluate.protocols.base import Evaluation, Protocol
from transforms.core import storage
from transforms.core.config import Config, Place, no_fingerprint
from transforms.core.errors import ConfigError
from transforms.core.progress import bar
from transforms.core.scores import Score
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES

log = logging.getLogger(__name__)

PIXELS_SIDE = 32
"""Side in pixels of the pictures in the pixel baseline."""
QUERIES_PER_CHUNK = 1024
"""Pictures compared at once; bounds the similarity matrix and changes no result."""
MAX_GENERATED_QUERIES = 5000
"""Generated images that are named; of more, evenly spaced ones."""
TOP = 5


class NamingConfig(Config):
    """Settings of naming."""

    images: Place | None = no_fingerprint(None)
    """Folder or URL of a complete images stage; null is `images` of the run."""
    num_neighbours: PositiveInt = 20
    """Generated images that vote (DINO's kNN: 20)."""
    temperature: PositiveFloat = 0.07
    """Votes have weight exp(cosine similarity / temperature) (DINO's kNN: 0.07)."""
    images_per_concept: PositiveInt = 100
    """Generated images of each concept, the first ones; bounds the time on a large run."""
    num_captions: PositiveInt = 50_000
    """Captions whose images are looked at: the first ones, which are a random part of the run."""
    min_things: PositiveInt = 5
    """Data sets in which fewer things are concepts of the run are left out."""


@dataclass(frozen=True)
class Names:
    """Names of pictures by their neighbours."""

    first: NDArray[np.bool_]
    """Whether the concept with the most votes is right, [M]."""
    five: NDArray[np.bool_]
    """Whether one of the five with the most votes is, [M]."""


def name_pictures(
    keys: NDArray[np.float32],  # [N, D]
    concepts: NDArray[np.int64],  # [N]
    queries: NDArray[np.float32],  # [M, D]
    labels: NDArray[np.int64],  # [M]
    config: NamingConfig,
    groups: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,  # [N], [M]
) -> Names:
    """Name pictures by their neighbours and compare with their labels.

    Features need not be normalised. A concept without a vote is never among the five.

    Args:
        keys: Features of the generated images.
        concepts: Their concepts, from 0.
        queries: Features of the pictures to name.
        labels: Concepts of these pictures.
        config: Neighbours and temperature.
        groups: Groups of the keys and of the queries; keys of a query's own group do not vote.
    """
    import torch
    from torch.nn import functional

    normalised = functional.normalize(torch.from_numpy(keys), dim=1)
    of_key, wanted = torch.from_numpy(concepts), torch.from_numpy(labels)
    num_concepts = int(concepts.max()) + 1
    first, five = [torch.zeros(0, dtype=torch.bool)], [torch.zeros(0, dtype=torch.bool)]
    for start in range(0, len(queries), QUERIES_PER_CHUNK):
        chunk = slice(start, start + QUERIES_PER_CHUNK)
        similarity = functional.normalize(torch.from_numpy(queries[chunk]), dim=1) @ normalised.T
        if groups is not None:
            of_keys, own = (torch.from_numpy(group) for group in groups)
            similarity[own[chunk, None] == of_keys] = -torch.inf
        best, nearest = similarity.topk(min(config.num_neighbours, len(keys)))
        # Subtracting the largest scales all votes of a picture alike and keeps them finite.
        weights = ((best - best[:, :1]) / config.temperature).double().exp().nan_to_num()
        votes = weights.new_zeros(len(best), num_concepts)
        votes.scatter_add_(1, of_key[nearest], weights)
        most, order = votes.topk(min(TOP, num_concepts))
        hits = (order == wanted[chunk, None]) & (most > 0)
        first.append(hits[:, 0])
        five.append(hits.any(dim=1))
    return Names(torch.cat(first).numpy(), torch.cat(five).numpy())


@dataclass(frozen=True)
class Trial:
    """The result of one subject."""

    kind: str
    test: Names
    validation: Names
    generated: float
    """Share of generated images that are named rightly, in percent."""
    num_generated: int
    """Generated images that could be decoded."""
    seconds: tuple[float, float]
    """Time for the features, and for the rest."""


@dataclass(frozen=True)
class Naming(Protocol[NamingConfig]):
    """Names pictures by the run's own generated images."""

    def absence(self, config: EvaluateConfig) -> str | None:
        """Return why there is nothing to name by, None if there is."""
        folder = StageFolder(_images(config, self.section(config)), STAGES["images"])
        if storage.exists(folder.index_url):
            return None
        return (
            f"{folder.url} holds no complete images stage to name pictures by; set naming.images "
            f"to one, or make it with {folder.commands}"
        )

    def source(self, config: EvaluateConfig) -> str:
        """Return the digest of the generated images."""
        return identity_of(_images(config, self.section(config)))

    def scores(self, evaluation: Evaluation, settings: NamingConfig) -> list[Score]:
        """Return top-1 and top-5 per data set and kind of subject; rank 0 compares."""
        from trainer import distributed

        generated = load_generated(
            _images(evaluation.config, settings),
            settings.num_captions,
            settings.images_per_concept,
        )
        scores = []
        for dataset in evaluation.datasets:
            questions = Questions(
                dataset,
                {
                    name: labels_of(_things(dataset, split), generated.concepts)
                    for name, split in dataset.splits.items()
                },
            )
            if questions.num_things >= settings.min_things:
                scores += _scores(evaluation, settings, questions, generated)
            elif distributed.rank() == 0:
                log.info(
                    "%s is not named: %d of its things are concepts of the generated images, and "
                    "naming.min_things is %d",
                    dataset.name,
                    questions.num_things,
                    settings.min_things,
                )
        return scores


@dataclass(frozen=True)
class Questions:
    """Pictures to name."""

    dataset: LabelledSet
    concepts: dict[str, NDArray[np.int64]]
    """Split -> concept of each of its pictures, -1 for none."""

    @property
    def num_things(self) -> int:
        """Number of concepts that the test pictures show."""
        test = self.concepts["test"]
        return len(np.unique(test[test >= 0]))


def _scores(
    evaluation: Evaluation,
    settings: NamingConfig,
    questions: Questions,
    generated: GeneratedSet,
) -> list[Score]:
    """Return the scores on one data set; all ranks call this together."""
    from trainer import distributed

    dataset, trials, lost = questions.dataset, list[Trial](), list[str]()
    images = replace(dataset, name="generated", identity=generated.identity)
    total = len(generated.split) + sum(map(len, questions.concepts.values()))
    with bar(total * len(evaluation.subjects), "pictures", f"naming {dataset.name}") as progress:
        for subject in map(_with_larger_pixels, evaluation.subjects):
            started = time.monotonic()
            extract = partial(_extract, evaluation, subject, done=progress.update)
            keys = extract(images, "train", generated.split)
            queries = {n: extract(dataset, n, split) for n, split in dataset.splits.items()}
            lost += [name for name in _unreadable(questions, queries) if name not in lost]
            work = partial(_trial, subject, keys, queries, questions, generated, settings, started)
            trials += distributed.gather_objects(distributed.run_on_all_ranks(work))[0]
    for name in lost:
        log.warning("cannot be decoded and is left out of %s: %s", dataset.name, name)
    return [
        replace(
            _score([t for t in trials if t.kind == kind], questions, generated, metric),
            unreadable=lost,
        )
        for metric in METRICS
        for kind in dict.fromkeys(trial.kind for trial in trials)
    ]


def _trial(
    subject: Subject,
    keys: Extracted,
    queries: dict[str, Extracted],
    questions: Questions,
    generated: GeneratedSet,
    settings: NamingConfig,
    started: float,
) -> list[Trial]:
    """Return the result of a subject, whose features were begun at `started`; rank 0 alone."""
    from trainer import distributed

    if distributed.rank() != 0:
        return []
    extracted, shown = time.monotonic(), keys.readable
    if not shown.any():
        raise ConfigError("no generated image can be decoded")
    values, concepts = keys.values[shown], generated.split.labels[shown]
    centre = values.mean(axis=0) if subject.kind == "pixels" else np.zeros(1, np.float32)
    values = values - centre

    def named(*splits: str) -> Names:
        chosen = [queries[name].readable & (questions.concepts[name] >= 0) for name in splits]
        pairs = list(zip(splits, chosen, strict=True))
        pictures = np.concatenate([queries[name].values[own] for name, own in pairs])
        labels = np.concatenate([questions.concepts[name][own] for name, own in pairs])
        return name_pictures(values, concepts, pictures - centre, labels, settings)

    step, captions = -(-len(values) // MAX_GENERATED_QUERIES), generated.captions[shown]
    groups = captions, captions[::step]
    own = name_pictures(values, concepts, values[::step], concepts[::step], settings, groups)
    test, validation = named("test"), named("train", "val")
    seconds = extracted - started, time.monotonic() - extracted
    share = 100 * float(own.first.mean())
    return [Trial(subject.kind, test, validation, share, len(values), seconds)]


METRICS: dict[str, Callable[[Names], NDArray[np.bool_]]] = {
    "top-1": lambda names: names.first,
    f"top-{TOP}": lambda names: names.five,
}
"""Metric -> which pictures are named rightly by it."""


def _score(
    trials: Sequence[Trial], questions: Questions, generated: GeneratedSet, metric: str
) -> Score:
    """Return the mean over the subjects of one kind."""
    right = METRICS[metric]
    if not len(trials[0].test.first):
        raise ConfigError(
            f"no test picture of data set {questions.dataset.name!r} that shows a concept of the "
            "run can be decoded"
        )
    hits = [right(trial.test).astype(np.int64) for trial in trials]
    ones = np.ones(len(hits[0]), dtype=np.int64)
    values = [100 * float(own.mean()) for own in hits]
    interval = metrics.bootstrap(hits, ones, "accuracy")
    choices = min(1 if metric == "top-1" else TOP, len(generated.concepts))
    features_s, rest_s = (sum(column) for column in zip(*(t.seconds for t in trials), strict=True))
    return Score(
        encoder=trials[0].kind,
        dataset=questions.dataset.name,
        protocol="naming",
        metric=metric,
        value=statistics.mean(values),
        error=statistics.mean(metrics.score(own, ones, "accuracy")[1] for own in hits),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        values=values,
        chance=100 * choices / len(generated.concepts),
        num_classes=len(generated.concepts),
        num_train=trials[0].num_generated,
        num_test=len(ones),
        details=[_details(trial, right(trial.validation)) for trial in trials],
        interval=[interval.low, interval.high],
        features_s=round(features_s, 2),
        protocol_s=round(rest_s, 2),
    )


def _details(trial: Trial, validation: NDArray[np.bool_]) -> dict[str, float | int | None]:
    share = round(100 * float(validation.mean()), 2) if len(validation) else None
    return {
        "validation": share,
        "num_validation": len(validation),
        "generated": round(trial.generated, 2),
    }


def _unreadable(questions: Questions, queries: dict[str, Extracted]) -> list[str]:
    """Return the names of the pictures to name that cannot be decoded."""
    return [
        f"{name}: {split.name(int(index))}"
        for name, split in questions.dataset.splits.items()
        for index in np.flatnonzero(~queries[name].readable & (questions.concepts[name] >= 0))
    ]


def _extract(
    evaluation: Evaluation,
    subject: Subject,
    dataset: LabelledSet,
    name: str,
    split: Split,
    *,
    done: Callable[[int], object],
) -> Extracted:
    """Return features of a split, from the cache if they are there; all ranks call this together.

    Those of a data set are shared with the protocols on frozen features.
    """
    from trainer import distributed

    if not len(split):
        return Extracted(np.zeros((0, 1), np.float32), np.zeros(0, bool))
    if not subject.digest or evaluation.cache is None:
        return subject.extract(split.pictures, done)
    folder = feature_cache.folder_of(evaluation.cache, subject, dataset, name)
    distributed.run_on_all_ranks(lambda: feature_cache.compute(folder, subject, split, done))
    return feature_cache.read(folder, subject, split)


def _with_larger_pixels(subject: Subject) -> Subject:
    return pixels_subject(PIXELS_SIDE) if subject.kind == "pixels" else subject


def _things(dataset: LabelledSet, split: Split) -> Sequence[str]:
    """Return the name of the thing in each picture: that of its class if the set has no finer."""
    return split.things or [dataset.classes[label] for label in split.labels]


def _images(config: EvaluateConfig, settings: NamingConfig) -> str:
    return settings.images or storage.join(config.run, "images")


PROTOCOL = Naming("naming", NamingConfig)
