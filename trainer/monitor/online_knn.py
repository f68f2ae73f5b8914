"""Online kNN: accuracy of the encoder on labelled pictures during a training.

It does not influence the training and is not in the paper. The protocol is that of the score sheet
(`trainer.evaluate.protocols.knn`) on a sample of a data set.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from trainer.evaluate import metrics
from trainer.evaluate.datasets import LabelledSet, Split, load_dataset
from trainer.evaluate.features import Extraction, encoder_subject
from trainer.evaluate.protocols import knn
from trainer.evaluate.protocols.knn import KnnConfig
from trainer.models.vit import EncoderConfig

BATCH_SIZE = 256


class OnlineKNN:
    """kNN evaluation of an encoder on a sample of a data set.

    Args:
        reference: Name of the data set, as in `trainer.evaluate`.
        num_pictures: Maximum number of pictures of each split, evenly spaced over it.
        model: Shape and normalisation of the encoder.
        device: Device on which features are computed.

    Raises:
        ConfigError: There is no such data set.
    """

    def __init__(
        self, reference: str, num_pictures: int, model: EncoderConfig, device: torch.device
    ) -> None:
        whole = load_dataset(reference)
        self.dataset: LabelledSet = replace(
            whole,
            train=_sample(whole.train, num_pictures),
            test=_sample(whole.test, num_pictures),
        )
        self._model = model
        self._extraction = Extraction(str(device), BATCH_SIZE, num_workers=0)

    def accuracy(self, encoder: Any) -> float:
        """Return the accuracy of kNN with k = 20 in percent; the encoder's mode is kept.

        Args:
            encoder: Network with timm's `forward_features`. All ranks must call this together if
                it is sharded over them.
        """
        training = encoder.training
        try:
            subject = encoder_subject("online", encoder, self._model, self._extraction)
            train, test = (
                subject.extract(split.pictures, lambda _: None)
                for split in (self.dataset.train, self.dataset.test)
            )
        finally:
            encoder.train(training)
        labels = self.dataset.train.labels[train.readable]
        truth = self.dataset.test.labels[test.readable]
        predictions = knn.predict(
            train.values[train.readable], labels, test.values[test.readable], KnnConfig()
        )
        return metrics.score(predictions, truth, self.dataset.metric)[0]


def _sample(split: Split, number: int) -> Split:
    """Return at most `number` pictures of a split, evenly spaced over it."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(number, len(split))).round().astype(int))
    return Split(tuple(split.pictures[i] for i in chosen), split.labels[chosen])
