"""Features on disk, computed once for each encoder, split of a data set and transform.

The pictures of a split are divided into parts of 2,048. Each part is one file, which is whole or
absent, in a folder named by the digest of all that its features depend on: weights, transform,
precision, pictures. Several ranks share the parts of a split, and a start after a kill computes
only the parts that are missing. All of it can be deleted at any time.
"""

import hashlib
import io
import logging
import zipfile
from collections.abc import Callable

import numpy as np

from trainer.evaluate.datasets import LabelledSet, Split
from trainer.evaluate.features import Extracted, Subject
from transforms.core import storage
from transforms.core.errors import MissingFileError

log = logging.getLogger(__name__)

PART = 2048
"""Pictures in a part."""
VERSION = 1
"""Version of the files. Raise it when features of the same pictures change."""


def folder_of(cache: str, subject: Subject, dataset: LabelledSet, split: str) -> str:
    """Return the folder with the features of a split."""
    made_from = "\n".join([str(VERSION), subject.digest, dataset.identity, split])
    digest = hashlib.blake2b(made_from.encode(), digest_size=16).hexdigest()
    return storage.join(cache, f"{dataset.name}-{split}-{digest}")


def compute(folder: str, subject: Subject, split: Split, done: Callable[[int], object]) -> None:
    """Compute the missing parts of a split that are this rank's share, and write them.

    Args:
        folder: Folder from `folder_of`.
        subject: What to compute features with.
        split: The pictures.
        done: Callback with the number of pictures just done.

    Raises:
        StorageError: A part cannot be written.
    """
    from trainer import distributed

    there = storage.list_files(folder)
    for number in range(num_parts(split)):
        first = number * PART
        pictures = split.pictures[first : first + PART]
        if number % distributed.world_size() != distributed.rank() or _name(number) in there:
            done(len(pictures))
        else:
            _write(folder, number, subject.extract(pictures, done))


def read(folder: str, subject: Subject, split: Split) -> Extracted:
    """Return the features of a split whose parts are there; a damaged part is computed again.

    Raises:
        StorageError: A part cannot be read.
    """
    parts = []
    for number in range(num_parts(split)):
        try:
            content = storage.read_bytes(storage.join(folder, _name(number)))
            with np.load(io.BytesIO(content)) as found:
                part = Extracted(found["values"], found["readable"])
        except (MissingFileError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("features %s are computed again: %s", _name(number), error)
            pictures = split.pictures[number * PART : (number + 1) * PART]
            part = subject.extract(pictures, lambda _: None)
            _write(folder, number, part)
        parts.append(part)
    values, readable = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Extracted(values, readable)


def num_parts(split: Split) -> int:
    """Return the number of parts of a split."""
    return -(-len(split) // PART)


def _write(folder: str, number: int, part: Extracted) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, values=part.values, readable=part.readable)
    storage.replace_bytes(buffer.getvalue(), storage.join(folder, _name(number)))


def _name(number: int) -> str:
    return f"part-{number:06d}.npz"
