"""A shuffle over files: rows move between tasks as columns, and Beam moves task numbers only.

Curation needs every caption to meet those that resemble it. Sent through a GroupByKey, captions
become Python objects one by one, and the direct runner keeps all of them in memory. Here a task
reads files, works on whole columns and writes one file for each task that comes next; it holds one
partition, whatever the size of the corpus.

A task that ends leaves a marker with its result. A job that is started again skips it, and one that
is repeated writes the same files, so workers may die or meet at any point.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from transforms.core import storage
from transforms.core.errors import MissingFileError

Result = dict[str, Any]
"""What a task says of its work: JSON values."""

TaskFunction = Callable[[int, Any], Result]
"""Does a task, given its number and what it was handed; it must pickle."""


@dataclass(frozen=True)
class Exchange:
    """Rows between the tasks of one step and the partitions of the next.

    Attributes:
        url: Folder of its files.
        num_partitions: Readers; each writer leaves a file for each of them, also an empty one.
    """

    url: str
    num_partitions: int

    def write(self, task: int, rows: pa.Table, partitions: NDArray[np.int64]) -> None:
        """Send each row to its partition: [N] rows, [N] numbers."""
        rows = rows.take(np.argsort(partitions, kind="stable"))
        ends = np.cumsum(np.bincount(partitions, minlength=self.num_partitions))
        for partition, end in enumerate(ends):
            start = ends[partition - 1] if partition else 0
            write_rows(rows.slice(start, end - start), self._file(partition, task))

    def read(self, partition: int, num_tasks: int) -> pa.Table:
        """All rows that the tasks sent to a partition."""
        return pa.concat_tables(
            read_rows(self._file(partition, task)) for task in range(num_tasks)
        ).combine_chunks()

    def _file(self, partition: int, task: int) -> str:
        return storage.join(self.url, f"{partition:06d}-{task:06d}.parquet")


def write_rows(rows: pa.Table, url: str) -> None:
    """Write a scratch file."""
    buffer = io.BytesIO()
    # Numbers here are hashes, which no dictionary makes shorter.
    texts = [field.name for field in rows.schema if pa.types.is_string(field.type)]
    pq.write_table(rows, buffer, compression="lz4", use_dictionary=texts)
    storage.replace_bytes(buffer.getvalue(), url)


def read_rows(url: str, columns: list[str] | None = None) -> pa.Table:
    """Read a scratch file, all columns or some."""
    return pq.read_table(io.BytesIO(storage.read_bytes(url)), columns=columns, use_threads=False)


class RunTasks(beam.PTransform):
    """(task number, what it is handed) -> (task number, result), each once.

    Args:
        name: Of the step.
        function: Does a task.
        markers: Folder of the markers of tasks that are done.
    """

    def __init__(self, name: str, function: TaskFunction, markers: str) -> None:
        super().__init__(name)
        self._task = _Task(function, storage.join(markers, name))

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        """Spread the tasks over the workers."""
        return (
            tasks
            | "Spread" >> beam.Reshuffle()
            | "Run" >> beam.ParDo(self._task).with_output_types(tuple[int, Result])
        )


class AllResults(beam.PTransform):
    """Results of a step -> one list of them, once all of them are there."""

    def expand(self, results: beam.PCollection) -> beam.PCollection:
        """A group ends when the step does."""
        return (
            results
            | "Together" >> beam.Map(_under_one_key).with_output_types(tuple[int, Any])
            | "Wait" >> beam.GroupByKey()
            | "List" >> beam.MapTuple(_as_list).with_output_types(list[Any])
        )


class NextTasks(beam.PTransform):
    """Results of a step -> the numbers of the next one's tasks, once all of them are there."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(name)
        self._number = number

    def expand(self, results: beam.PCollection) -> beam.PCollection:
        """Wait, then number."""
        return (
            results
            | AllResults()
            | "Next" >> beam.FlatMap(_numbers, self._number).with_output_types(tuple[int, None])
        )


def _under_one_key(result: Any) -> tuple[int, Any]:
    return 0, result


def _as_list(_: int, results: Iterable[Any]) -> list[Any]:
    return list(results)


def _numbers(_: list[Any], number: int) -> Iterator[tuple[int, None]]:
    return ((task, None) for task in range(number))


class _Task(beam.DoFn):
    def __init__(self, function: TaskFunction, markers: str) -> None:
        self._function = function
        self._markers = markers

    def process(self, task: tuple[int, Any]) -> Iterator[tuple[int, Result]]:
        number, handed = task
        marker = storage.join(self._markers, f"{number:06d}.json")
        try:
            result: Result = json.loads(storage.read_bytes(marker))
        except MissingFileError:
            result = self._function(number, handed)
            storage.replace_bytes(json.dumps(result).encode(), marker)
        yield number, result
