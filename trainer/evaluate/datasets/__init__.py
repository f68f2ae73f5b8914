"""The registry of data sets: built-in ones, folders of pictures, and public ones.

To add a public set, write a `Source` with its reader, as `resisc45` does, and name it in `SOURCES`.
`evaluate check`, the config and the score sheet follow from that.
"""

from collections.abc import Iterable
from pathlib import Path

from trainer.evaluate.datasets import ade20k, folders, installed, kitti, resisc45, vision, voc
from trainer.evaluate.datasets.base import (
    AbsentSetError,
    Kind,
    LabelledSet,
    Picture,
    Split,
)
from trainer.evaluate.datasets.builtin import BUILT_IN, load_built_in
from trainer.evaluate.datasets.sources import Source
from transforms.core.errors import ConfigError

__all__ = ["AbsentSetError", "Kind", "LabelledSet", "Picture", "Split", "load_dataset"]

PAPER_SOURCES: tuple[Source, ...] = (
    *vision.SOURCES,
    voc.SOURCE,
    resisc45.SOURCE,
    kitti.SOURCE,
    ade20k.SOURCE,
)
"""Public data sets of the paper."""
SOURCES: dict[str, Source] = {source.key: source for source in (*PAPER_SOURCES, *installed.SOURCES)}
"""Every public data set by its reference."""
GROUPS: dict[str, tuple[str, ...]] = {"paper": tuple(source.key for source in PAPER_SOURCES)}
"""Reference to several data sets -> their references."""


def load_dataset(reference: str, folder: Path | None = None) -> LabelledSet:
    """Return a data set by its reference.

    Args:
        reference: A built-in set ("drawings", "fashion-mnist"), a public set
            ("torchvision:flowers102"), or "folder:PATH" with PATH/train/CLASS/*.jpg and
            PATH/test/CLASS/*.jpg (and optionally PATH/val/CLASS/*.jpg).
        folder: Folder of the public sets.

    Raises:
        ConfigError: There is no such data set, or its files are not as they should be.
        AbsentSetError: A public set is not there.
    """
    if reference.startswith(folders.PREFIX):
        return folders.load_folder(reference)
    if reference in BUILT_IN:
        return load_built_in(reference)
    if reference in SOURCES:
        return SOURCES[reference].load(folder)
    raise ConfigError(
        f"unknown data set {reference!r}: expected one of {', '.join([*BUILT_IN, *SOURCES])}, "
        f"{', '.join(GROUPS)} for all of the paper, or {folders.PREFIX}PATH, a folder with "
        "train/CLASS/ and test/CLASS/"
    )


def expand(references: Iterable[str]) -> list[str]:
    """Return references to single data sets: groups are replaced by their members."""
    return [single for reference in references for single in GROUPS.get(reference, (reference,))]


def name_of(reference: str) -> str:
    """Return the name of a data set on the score sheet, whether it is there or not."""
    if reference in SOURCES:
        return SOURCES[reference].name
    if reference.startswith(folders.PREFIX):
        return Path(reference.removeprefix(folders.PREFIX)).expanduser().resolve().name
    return reference
