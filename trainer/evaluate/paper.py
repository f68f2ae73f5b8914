"""Scores that the paper reports, to print next to ours.

Source: the tables of paper section 4, in percent. Left out: fine-tuning, and the mean of nine data
sets. Data sets are found by name; a folder data set has the name of its folder. OpenCLIP was
trained on 400 million or 2 billion pairs of LAION.
"""

from trainer.evaluate.metrics import CLASS_METRICS, Metric

METRICS: dict[str, Metric] = {
    "imagenet-1k": "accuracy",
    "aircraft": "mean per-class accuracy",
    "cars": "accuracy",
    "dtd": "accuracy",
    "flowers": "mean per-class accuracy",
    "pets": "mean per-class accuracy",
    "sun397": "accuracy",
    "caltech-101": "mean per-class accuracy",
    "food-101": "accuracy",
    "voc2007": "11-point mAP",
    "ade20k": "mIoU",
}
"""Data set of the paper -> its metric, in the order of the results below."""

_SCORES: dict[str, tuple[float | None, ...]] = {
    "StableRep B/16": (75.7, 59.2, 83.5, 80.1, 97.3, 88.3, 74.3, 94.7, 85.1, 87.9, 49.4),
    "CLIP B/16": (80.2, 59.5, 86.7, 79.2, 98.1, 93.1, 78.4, 94.7, 92.8, 89.2, 52.6),
    "CLIP L/14": (83.9, 69.4, 90.9, 82.1, 99.2, 95.1, 81.8, 96.5, 95.2, 89.6, None),
    "OpenCLIP B/16 (400M)": (78.9, 61.1, 92.3, 81.9, 98.2, 91.5, 77.9, 95.2, 90.9, 88.0, None),
    "OpenCLIP L/14 (400M)": (82.3, 67.1, 94.0, 83.6, 98.8, 92.5, 81.0, 96.4, 93.4, 88.8, None),
    "OpenCLIP L/14 (2B)": (83.4, 71.7, 95.3, 85.3, 99.0, 94.2, 82.2, 97.5, 94.1, 88.9, None),
    "DINO v2 B/14": (83.9, 79.4, 88.2, 83.3, 99.6, 96.2, 77.3, 96.1, 92.8, 88.2, 54.4),
    "DINO v2 L/14": (85.7, 81.5, 90.1, 84.0, 99.7, 96.6, 78.7, 97.5, 94.3, 88.3, 57.5),
    "SynCLR B/16": (80.7, 81.7, 93.8, 79.9, 99.1, 93.6, 76.2, 95.3, 91.6, 89.4, 54.3),
    "SynCLR L/14": (83.0, 85.6, 94.2, 82.1, 99.2, 94.1, 78.4, 96.1, 93.4, 90.3, 57.7),
}


def metric_of_classes(dataset: str) -> Metric | None:
    """Return the paper's metric for a folder of class folders by its name; None for other names."""
    metric = METRICS.get(dataset)
    return metric if metric in CLASS_METRICS else None


def protocol(dataset: str) -> str:
    """Return how the paper scores one of its data sets."""
    if dataset == "imagenet-1k":
        return "linear layer, SGD with augmentation"
    return "UperNet" if dataset == "ade20k" else "logistic regression"


def headline(dataset: str) -> dict[str, float]:
    """Return encoder -> score reported for a data set; empty for data sets not in the paper."""
    if dataset not in METRICS:
        return {}
    column = list(METRICS).index(dataset)
    found = {encoder: scores[column] for encoder, scores in _SCORES.items()}
    return {encoder: score for encoder, score in found.items() if score is not None}
