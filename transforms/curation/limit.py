"""A limit of captions for each concept, so that concepts have equally many.

Captions are drawn by the weight of their concept, and filters and duplicates take more of some
concepts than of others. With a limit, a concept keeps its first captions in the random order. If
the limit is the number of captions divided by the number of concepts, all have exactly that many.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from transforms.core.errors import DamagedFileError
from transforms.curation.file_shuffle import AllResults, read_json, write_json

if TYPE_CHECKING:
    from transforms.curation.dedup import Deduplication

CONCEPT_COLUMNS = ["source", "concept"]

Counts = Mapping[str, int]
"""Number of captions of each concept; the key is source and concept as JSON."""


@dataclass(frozen=True)
class ConceptLimit:
    """At most `most` captions of each concept, the first ones in the random order.

    Attributes:
        counts_url: File that `CountConcepts` writes.
        most: Most captions of a concept.
    """

    counts_url: str
    most: int

    def keep(self, partition: int, rows: pa.Table) -> pa.Table:
        """Return the rows of a partition within the limit.

        Args:
            partition: Number of the partition.
            rows: All of its rows, in the random order, with `CONCEPT_COLUMNS`.
        """
        numbers, names = _concepts(rows)
        before: Counter[str] = Counter()
        for counts in _read(self.counts_url)[:partition]:
            before.update(counts)
        left = np.array([self.most - before[name] for name in names], np.int64)
        order = np.argsort(numbers, kind="stable")
        starts = np.searchsorted(numbers[order], np.arange(len(names)))
        places = np.empty(len(numbers), np.int64)  # Of each row among those of its concept.
        places[order] = np.arange(len(numbers)) - starts[numbers[order]]
        return rows.filter(pa.array(places < left[numbers]))

    @property
    def num_kept(self) -> list[int]:
        """Number of captions that are kept of each partition."""
        before: Counter[str] = Counter()
        kept = []
        for counts in _read(self.counts_url):
            within = ((name, min(n, self.most - before[name])) for name, n in counts.items())
            kept.append(sum(max(0, number) for _, number in within))
            before.update(counts)
        return kept

    def fewest(self) -> tuple[str, int]:
        """Return the concept with the fewest captions, and their number."""
        total: Counter[str] = Counter()
        for counts in _read(self.counts_url):
            total.update(counts)
        key, number = min(total.items(), key=lambda item: (item[1], item[0]))
        return json.loads(key)[1], number


class CountConcepts(beam.PTransform):
    """Count the captions of each concept and partition: partition numbers -> a JSON file.

    Args:
        deduplication: Deduplication whose scratch files are read.
        url: URL of the JSON file.
    """

    def __init__(self, deduplication: "Deduplication", url: str) -> None:
        super().__init__()
        self._count = _CountConcepts(deduplication)
        self._url = url

    def expand(self, partitions: beam.PCollection) -> beam.PCollection:
        """Count per partition and write the file."""
        return (
            partitions
            | "Spread" >> beam.Reshuffle()
            | "Count" >> beam.ParDo(self._count).with_output_types(tuple[int, dict[str, int]])
            | "Results" >> AllResults()
            | "Write" >> beam.Map(_write, self._url)
        )


class _CountConcepts(beam.DoFn):
    def __init__(self, deduplication: "Deduplication") -> None:
        self._deduplication = deduplication

    def process(self, partition: int) -> Iterator[tuple[int, Counts]]:
        numbers, names = _concepts(self._deduplication.kept(partition, CONCEPT_COLUMNS))
        counts = np.bincount(numbers, minlength=len(names)).tolist()
        yield partition, dict(zip(names, counts, strict=True))


def is_counted(url: str) -> bool:
    """Return whether the file that `CountConcepts` writes is there, and whole."""
    return read_json(url) is not None


def _write(results: list[tuple[int, Counts]], url: str) -> None:
    write_json([counts for _, counts in sorted(results, key=lambda result: result[0])], url)


@lru_cache(maxsize=1)
def _read(url: str) -> list[Counts]:
    counts: list[Counts] | None = read_json(url)
    if counts is None:
        raise DamagedFileError(f"{url} is missing or damaged: run the same command again")
    return counts


def _concepts(rows: pa.Table) -> tuple[NDArray[np.int64], list[str]]:
    """Return the number of each row's concept, [N], and the names of the concepts."""
    columns = [rows[name].to_pylist() for name in CONCEPT_COLUMNS]
    keys = [json.dumps(pair) for pair in zip(*columns, strict=True)]
    coded = pa.array(keys, pa.string()).dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()
