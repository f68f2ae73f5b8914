"""Data sets of the user: folders with one folder of pictures per class."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.evaluate import paper
from trainer.evaluate.datasets.base import LabelledSet, Split, held_out
from transforms.core.errors import ConfigError

PREFIX = "folder:"
"""Prefix of references to folders of class folders."""
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def load_folder(reference: str) -> LabelledSet:
    """Return the data set in "folder:PATH".

    Raises:
        ConfigError: The folder has another layout.
    """
    root = Path(reference.removeprefix(PREFIX)).expanduser()
    files = {split: _class_files(root / split) for split in ("train", "val", "test")}
    for required in ("train", "test"):
        if not files[required]:
            raise ConfigError(
                f"data set {reference!r}: expected pictures in {root / required}/CLASS/, "
                "but there are none"
            )
    classes = tuple(sorted(files["train"]))
    for split in ("val", "test"):
        unknown = sorted(set(files[split]) - set(classes))
        if unknown:
            raise ConfigError(
                f"data set {reference!r}: class {unknown[0]!r} of {split}/ is not in train/"
            )
    if not files["val"]:
        aside = {name: _held_out(root, paths) for name, paths in files["train"].items()}
        for name, chosen in aside.items():
            files["train"][name] = [p for p in files["train"][name] if p not in chosen]
            files["val"][name] = sorted(chosen)
    digest = hashlib.blake2b(digest_size=16)
    for split, by_class in files.items():
        for path in (path for name in sorted(by_class) for path in by_class[name]):
            digest.update(f"{split}/{path.relative_to(root)}:{path.stat().st_size}\n".encode())
    train, val, test = (_labelled(files[name], classes) for name in ("train", "val", "test"))
    if not len(val):
        raise ConfigError(
            f"data set {reference!r}: expected a val/ folder, or at least 3 pictures of some class "
            "in train/, of which a part is then set aside for validation"
        )
    name = root.resolve().name
    metric = paper.metric_of_classes(name) or "mean per-class accuracy"
    return LabelledSet(name, classes, metric, train, val, test, digest.hexdigest())


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Return class -> picture files below its folder; classes without pictures are left out."""
    if not folder.is_dir():
        return {}
    found = {
        entry.name: sorted(p for p in entry.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        for entry in sorted(folder.iterdir())
        if entry.is_dir()
    }
    return {name: paths for name, paths in found.items() if paths}


def _held_out(root: Path, paths: Sequence[Path]) -> set[Path]:
    """Return the validation part of a class; classes of one or two pictures have none."""
    by_name = {path.relative_to(root).as_posix(): path for path in paths}
    return {by_name[name] for name in held_out(list(by_name))}


def _labelled(by_class: dict[str, list[Path]], classes: tuple[str, ...]) -> Split:
    pairs = [(p, label) for label, name in enumerate(classes) for p in by_class.get(name, [])]
    return Split(tuple(p for p, _ in pairs), np.array([label for _, label in pairs], np.int64))
