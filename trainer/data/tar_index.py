"""Where the files of each sample stand in a shard: a plain WebDataset tar.

As in WebDataset, what comes before the first dot of a file's name is the key of its sample.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transforms.core.tar_shards import list_members


@dataclass(frozen=True)
class TarIndex:
    """Where the samples of a shard are, in a few bytes a file: many shards are remembered."""

    keys: list[str]
    """Of each sample."""
    ends: NDArray[np.int64]
    """[samples], the number of the file after the sample's last one."""
    names: list[str]
    """Of each file, what follows the key: "0.jpg", "txt", "json"."""
    places: NDArray[np.int64]
    """[files, 2], offset and size."""

    def files(self, sample: int) -> Iterator[tuple[str, int, int]]:
        """Name, offset and size of each file of a sample."""
        start, end = int(self.ends[sample - 1]) if sample else 0, int(self.ends[sample])
        for name, place in zip(self.names[start:end], self.places[start:end], strict=True):
            yield name, int(place[0]), int(place[1])


def read_tar_index(descriptor: int) -> TarIndex:
    """The headers of an open shard.

    Raises:
        tarfile.TarError: It is damaged.
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
