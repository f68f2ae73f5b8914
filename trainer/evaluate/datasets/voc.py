"""VOC2007 as a multi-label set: which of 20 classes a picture shows.

Source: paper section 4, and the development kit of VOC2007. A class counts as there if one of its
objects is not marked as difficult. If all of them are difficult, the picture does not count for
that class. The official files of the classification task say the same.
"""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from trainer.evaluate.datasets.base import SPLITS, Part
from trainer.evaluate.datasets.sources import Found, Source
from trainer.evaluate.datasets.vision import part_of_files

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def labels_of(annotation: Path) -> list[int]:
    """Return the label of each class from a picture's XML file; see `Split.labels`."""
    labels = [-1] * len(CLASSES)
    for found in ElementTree.parse(annotation).getroot().iter("object"):
        index = CLASSES.index(found.findtext("name", "").strip())
        difficult = found.findtext("difficult", "0").strip() == "1"
        labels[index] = max(labels[index], 0 if difficult else 1)
    return labels


def _read(root: Path) -> Found:
    from torchvision.datasets import VOCDetection

    parts: dict[str, Part] = {}
    for split in SPLITS:
        found = VOCDetection(root, year="2007", image_set=split, download=False)
        labels = np.array([labels_of(Path(file)) for file in found.targets], dtype=np.int64)
        parts[split] = part_of_files(root, found.images, labels)
    return Found(CLASSES, parts)


SOURCE = Source(
    "voc2007",
    "torchvision:voc2007",
    _read,
    (
        "VOCdevkit/VOC2007/JPEGImages",
        "VOCdevkit/VOC2007/Annotations",
        "VOCdevkit/VOC2007/ImageSets/Main/train.txt",
        "VOCdevkit/VOC2007/ImageSets/Main/test.txt",
    ),
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/ (trainval and test)",
    "11-point mAP",
    num_classes=len(CLASSES),
    num_pictures=9_963,
    kind="multi-label",
)
