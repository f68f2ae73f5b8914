"""Public data sets: what each one is, where its files are expected, and how it is read.

To add one, write a `Source` next to its reader and name it in `trainer.evaluate.datasets`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.evaluate.datasets.base import (
    SPLITS,
    VALIDATION_SHARE,
    AbsentSetError,
    Kind,
    LabelledSet,
    Part,
    Split,
    identity_of,
    set_aside,
)
from trainer.evaluate.metrics import Metric
from transforms.core.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What a reader returns."""

    classes: tuple[str, ...]
    parts: Mapping[str, Part]
    """train, and val and test if they are official."""


@dataclass(frozen=True)
class Source:
    """A public data set."""

    name: str
    """Name on the score sheet."""
    key: str
    """Reference in a config: `torchvision:CLASS` where torchvision reads it."""
    read: Callable[[Path], Found]
    """Reads a complete copy below the folder of all data sets."""
    needs: tuple[str, ...]
    """Paths below the folder of all data sets that a copy has."""
    page: str
    """Where to get it."""
    metric: Metric
    num_classes: int
    num_pictures: int
    """Pictures in all splits of a complete copy."""
    kind: Kind = "classification"
    validation_share: float = VALIDATION_SHARE
    """Share of each training class that is set aside if `read` finds no validation split."""

    def missing(self, folder: Path | None) -> list[str]:
        """Return the paths that a copy would have and that are not there.

        Args:
            folder: Folder of all data sets; None if the config names none.
        """
        root = folder or Path("DATA")
        return [str(root / path) for path in self.needs if not (root / path).exists()]

    def load(self, folder: Path | None) -> LabelledSet:
        """Return the data set.

        Args:
            folder: Folder of all data sets; None if the config names none.

        Raises:
            AbsentSetError: It is not there.
            ConfigError: Its files are not as they should be.
        """
        missing = self.missing(folder)
        if missing:
            raise AbsentSetError(f"{', '.join(missing)} not found; get it from {self.page}")
        try:
            found = self.read(folder or Path())
        except (OSError, ValueError, KeyError, LookupError, RuntimeError) as error:
            raise ConfigError(
                f"data set {self.key!r} in {folder} cannot be read ({error}): unpack it again "
                f"from {self.page}"
            ) from error
        return self._checked(found)

    def _checked(self, found: Found) -> LabelledSet:
        parts = dict(found.parts)
        if "test" not in parts:
            parts["train"], parts["test"] = set_aside(parts["train"])
        if "val" not in parts:
            parts["train"], parts["val"] = set_aside(parts["train"], self.validation_share)
        parts = {name: parts[name] for name in SPLITS}
        number = sum(len(part.pictures) for part in parts.values())
        if (len(found.classes), number) != (self.num_classes, self.num_pictures):
            log.warning(
                "data set %s has %d classes and %d pictures: a complete copy has %d and %d",
                self.name,
                len(found.classes),
                number,
                self.num_classes,
                self.num_pictures,
            )
        train, val, test = (Split(p.pictures, p.labels, p.masks) for p in parts.values())
        identity = identity_of(parts)
        return LabelledSet(
            self.name, found.classes, self.metric, train, val, test, identity, self.kind
        )
