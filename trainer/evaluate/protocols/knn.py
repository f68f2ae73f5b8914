"""Weighted nearest neighbours on frozen features: a fast score without training.

Source: the protocol of DINO (the paper has no such score): cosine similarity; the k nearest
training pictures vote with weight exp(similarity / temperature). Nothing is fitted or chosen, so
training and validation pictures together are the neighbours.
"""

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from trainer.evaluate.features import FrozenFeatures
from trainer.evaluate.metrics import Metric
from trainer.evaluate.protocols.frozen import FrozenProtocol, Prediction
from transforms.core.config import Config

log = logging.getLogger(__name__)

QUERIES_PER_CHUNK = 1024
"""Test pictures compared at once; bounds the similarity matrix and changes no result."""


class KnnConfig(Config):
    """Settings of the kNN protocol."""

    num_neighbours: PositiveInt = 20
    """Neighbours that vote (DINO: 20)."""
    temperature: PositiveFloat = 0.07
    """Votes have weight exp(cosine similarity / temperature) (DINO: 0.07)."""


def predict(
    train: NDArray[np.float32],  # [N, D]
    labels: NDArray[np.int64],  # [N]
    test: NDArray[np.float32],  # [M, D]
    config: KnnConfig,
) -> NDArray[np.int64]:
    """Return the class that the neighbours of each test picture vote for, [M].

    Features need not be normalised. If there are fewer training pictures than neighbours, all of
    them vote.
    """
    import torch
    from torch.nn import functional

    if len(train) < config.num_neighbours:
        log.warning(
            "num_neighbours is %d but there are only %d training pictures: all of them vote",
            config.num_neighbours,
            len(train),
        )
    keys = functional.normalize(torch.from_numpy(train), dim=1)
    classes = torch.from_numpy(labels)
    num_classes = int(labels.max()) + 1
    predictions = []
    for queries in functional.normalize(torch.from_numpy(test), dim=1).split(QUERIES_PER_CHUNK):
        similarity, nearest = (queries @ keys.T).topk(min(config.num_neighbours, len(keys)))
        # Subtracting 1 scales all votes alike and keeps them finite at small temperatures.
        weights = ((similarity - 1) / config.temperature).exp()
        votes = weights.new_zeros(len(queries), num_classes)
        predictions.append(votes.scatter_add_(1, classes[nearest], weights).argmax(dim=1))
    return torch.cat(predictions).numpy()


def _predict(
    features: FrozenFeatures, metric: Metric, config: KnnConfig, tick: Callable[[], object]
) -> Prediction:
    values = np.concatenate([features.train.values, features.val.values])
    labels = np.concatenate([features.train.labels, features.val.labels])
    predictions = predict(values, labels, features.test.values, config)
    tick()
    return predictions, {}


PROTOCOL = FrozenProtocol("knn", KnnConfig, _predict)
