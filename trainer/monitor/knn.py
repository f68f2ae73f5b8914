"""kNN on real pictures while an encoder trains: a quick look, never a reason to change anything.

Not in the paper. The score sheet's protocol (`trainer.evaluate.knn`) on a sample of a data set.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from trainer.evaluate import knn, metrics
from trainer.evaluate.datasets import LabelledSet, Split, load_dataset
from trainer.evaluate.features import Extraction, encoder_subject
from trainer.evaluate.knn import KnnConfig
from trainer.models.vit import EncoderConfig

BATCH_SIZE = 256


class Probe:
    """Scores an encoder on at most `num_pictures` training and test pictures of a data set.

    Args:
        reference: Of the data set, as in `trainer.evaluate`.
        num_pictures: Of each split, evenly spaced over it.
        model: The encoder's shape and normalisation.
        device: Where it runs.

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
        """Of kNN with k = 20, in percent; the encoder's mode is as before afterwards.

        Args:
            encoder: Has timm's `forward_features`. Where it is spread over the ranks all of them
                must ask together.
        """
        training = encoder.training
        try:
            subject = encoder_subject("probe", encoder, self._model, self._extraction)
            train, test = (
                subject.extract(split, lambda _: None)
                for split in (self.dataset.train, self.dataset.test)
            )
        finally:
            encoder.train(training)
        labels = self.dataset.train.labels
        predictions = knn.predict(train, labels, test, KnnConfig())
        return metrics.score(predictions, self.dataset.test.labels, self.dataset.metric)[0]


def _sample(split: Split, number: int) -> Split:
    """Evenly spaced pictures of a split, all of it if it is smaller."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(number, len(split))).round().astype(int))
    return Split(tuple(split.pictures[i] for i in chosen), split.labels[chosen])
