"""Errors with one sentence for the user, and the translation of parser errors into them."""

import contextlib
import tarfile
from collections.abc import Iterator

import pyarrow as pa
import yaml


class ConfigError(ValueError):
    """A setting is wrong; the message is one sentence for the person who wrote it."""


class UnfinishedError(RuntimeError):
    """Work is left undone; the message says what is missing and how to go on."""


class StorageError(OSError):
    """Storage failed; the message is one sentence: what failed, where, and how to go on."""

    def __str__(self) -> str:
        return str(self.args[-1])


class MissingFileError(StorageError):
    """A file that should exist does not."""


class DamagedFileError(ValueError):
    """A file of a run does not hold what it must; the message names it."""


DAMAGE = (
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    tarfile.TarError,
    yaml.YAMLError,
    pa.ArrowException,
)
"""What parsers raise on bytes that are not what they must be.

A flipped bit in a Parquet file is a plain `OSError`, an `ArrowNotImplementedError` or another of
Arrow's, by where it is.
"""


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Around the parsing of a file.

    Args:
        what: The file, as the subject of a sentence in the singular.

    Raises:
        DamagedFileError: It does not hold what it must. Errors of the storage stay as they are.
    """
    try:
        yield
    except (DamagedFileError, StorageError):
        raise
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The system's, which says nothing about the content.
        reason = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise DamagedFileError(f"{what} is damaged: {reason}") from error
