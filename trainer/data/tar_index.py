"""The offsets of each sample's files in a shard, which is a plain WebDataset tar.

As in WebDataset, the part of a file's name before the first dot is the key of its sample.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transforms.core.tar_shards import list_members


@dataclass(frozen=True)
class TarIndex:
    """The samples and files of a shard; compact, since a reader keeps those of many shards."""

    keys: list[str]
    """[samples], the key of each sample."""
    ends: NDArray[np.int64]
    """int64 [samples], number of files up to the end of each sample."""
    names: list[str]
    """[files], the part of each file's name after the key: "0.jpg", "txt", "json"."""
    places: NDArray[np.int64]
    """int64 [files, 2], offset and size in bytes."""

    def files(self, sample: int) -> Iterator[tuple[str, int, int]]:
        """Yield name, offset and size of each file of a sample."""
        start, end = int(self.ends[sample - 1]) if sample else 0, int(self.ends[sample])
        for name, place in zip(self.names[start:end], self.places[start:end], strict=True):
            yield name, int(place[0]), int(place[1])


def read_tar_index(descriptor: int) -> TarIndex:
    """Read the tar headers of an open shard.

    Args:
        descriptor: File descriptor of the shard.

    Raises:
        tarfile.TarError: The shard is damaged.
    """
    samples: dict[str, list[tuple[str, int, int]]] = {}
    for path, offset, size in list_members(descriptor):
        folder, slash, base = path.rpartition("/")
        key, _, name = base.partition(".")
        samples.setdefault(folder + slash + key, []).append((sys.intern(name), offset, size))
    files = [file for sample in samples.values() for file in sample]
    return TarIndex(
        keys=list(samples),
        ends=np.cumsum([len(sample) for sample in samples.values()]),
        names=[name for name, _, _ in files],
        places=np.array([place for _, *place in files], dtype=np.int64),
    )
