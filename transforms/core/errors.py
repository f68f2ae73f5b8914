"""Errors with one sentence for the user, and the translation of parser errors into them.

The other translator, for errors of the system and of storage, is `storage.accessing`.
"""

import contextlib
import tarfile
from collections.abc import Iterator

import pyarrow as pa
import yaml


class ConfigError(ValueError):
    """A setting is wrong; the message is one sentence for the person who wrote it."""


class UnfinishedError(RuntimeError):
    """Work is left undone; the message says what is missing and which command continues."""


class StorageError(OSError):
    """Storage failed; the message is one sentence: what failed, where, and how to continue."""

    def __str__(self) -> str:
        return str(self.args[-1])


class MissingFileError(StorageError):
    """A file that should exist does not."""


class DamagedFileError(ValueError):
    """A file of a run does not have the expected content; the message names it."""


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
"""What parsers raise on damaged content.

A flipped bit in a Parquet file raises a plain `OSError`, an `ArrowNotImplementedError` or another
of Arrow's errors, depending on where it is.
"""


@contextlib.contextmanager
def reading(what: str, advice: str = "") -> Iterator[None]:
    """Translate what a parser raises on damaged content into a `DamagedFileError`.

    Args:
        what: The file, as the subject of a sentence in the singular.
        advice: What to do about it, the last part of the sentence.

    Raises:
        DamagedFileError: The file does not have the expected content. Errors of storage and of the
            operating system pass through.
    """
    try:
        yield
    except (DamagedFileError, StorageError):
        raise
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # An error of the operating system says nothing about the content.
        reason = f"{type(error).__name__} {' '.join(str(error).split())}"
        sentence = f"{what} is damaged: {reason}"
        raise DamagedFileError(f"{sentence}; {advice}" if advice else sentence) from error
