"""A shuffle through files: tasks exchange rows as Parquet files, and Beam moves task numbers only.

Deduplication compares each caption with those that resemble it, so captions must move between
workers. In a GroupByKey, each caption would be a Python object, and the direct runner would keep
all of them in memory. Here a task reads files, works on whole columns and writes one file for each
task of the next step. It holds one partition in memory, at any size of the corpus.

A finished task leaves a marker with its result. A job that is started again skips that task. A task
that runs twice writes the same files, so workers may die or do the same task at any point.

All files carry checksums. A file that is damaged or missing is named by a `LostFilesError`; without
the marker of its task, it is made again. A damaged marker counts as a missing one.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from transforms.core import storage
from transforms.core.errors import DamagedFileError, MissingFileError, reading

log = logging.getLogger(__name__)

_DIGEST_SIZE = 16
_END = b"SUM1"
"""The end of files of rows. Earlier versions wrote plain Parquet, which ends otherwise."""

Result = dict[str, Any]
"""Result of a task, as JSON values."""

TaskFunction = Callable[[int, Any], Result]
"""(task number, argument) -> result. It must be picklable."""


class LostFilesError(DamagedFileError):
    """Scratch files are damaged or missing.

    Args:
        urls: Names of the files.
        reason: What is wrong with the first one.
    """

    def __init__(self, urls: Sequence[str], reason: str) -> None:
        super().__init__(urls, reason)
        self.urls, self.reason = urls, reason

    def __str__(self) -> str:
        more = f" (and {len(self.urls) - 1:,} more files)" if len(self.urls) > 1 else ""
        return f"{self.reason}{more}"


@dataclass(frozen=True)
class Exchange:
    """Rows that the tasks of one step send to the partitions of the next.

    Attributes:
        url: Folder of the files.
        num_partitions: Number of partitions. Each task writes a file for each of them, an empty
            one if it has no rows for it.
    """

    url: str
    num_partitions: int

    def write(self, task: int, rows: pa.Table, partitions: NDArray[np.int64]) -> None:
        """Write the rows of a task: [N] rows, [N] numbers of their partitions."""
        rows = rows.take(np.argsort(partitions, kind="stable"))
        ends = np.cumsum(np.bincount(partitions, minlength=self.num_partitions))
        for partition, end in enumerate(ends):
            start = ends[partition - 1] if partition else 0
            write_rows(rows.slice(start, end - start), self._file(partition, task))

    def read(self, partition: int, num_tasks: int) -> pa.Table:
        """Read all rows that the tasks sent to a partition.

        Raises:
            LostFilesError: Some files are damaged or missing; all of them are named.
        """
        tables = []
        lost: list[str] = []
        reasons: list[str] = []
        for task in range(num_tasks):
            try:
                tables.append(read_rows(self._file(partition, task)))
            except LostFilesError as error:
                lost += error.urls
                reasons.append(error.reason)
        if lost:
            raise LostFilesError(lost, reasons[0])
        return pa.concat_tables(tables).combine_chunks()

    def _file(self, partition: int, task: int) -> str:
        return storage.join(self.url, f"{partition:06d}-{task:06d}.parquet")


def write_rows(rows: pa.Table, url: str) -> None:
    """Write a scratch file: Parquet, and the checksum of all that is before it."""
    buffer = io.BytesIO()
    # The numbers are hashes, which a dictionary does not make shorter.
    texts = [field.name for field in rows.schema if pa.types.is_string(field.type)]
    pq.write_table(rows, buffer, compression="lz4", use_dictionary=texts)
    content = buffer.getvalue()
    storage.replace_bytes(content + _digest(content) + _END, url)


def read_rows(url: str, columns: list[str] | None = None) -> pa.Table:
    """Read a scratch file: the given columns, or all.

    Raises:
        LostFilesError: The file is damaged or missing.
    """
    try:
        content = storage.read_bytes(url)
        with reading(url):
            if content.endswith(_END):
                size = len(content) - len(_END) - _DIGEST_SIZE
                content, end = content[:size], content[size:]
                if end != _digest(content) + _END:
                    raise ValueError("its content does not have its checksum")
            return pq.read_table(io.BytesIO(content), columns=columns, use_threads=False)
    except (MissingFileError, DamagedFileError) as error:
        raise LostFilesError([url], str(error)) from error


def write_json(value: Any, url: str) -> None:
    """Write JSON values to a scratch file, with their checksum."""
    content = {"value": value, "blake2b": _checksum(value)}
    storage.replace_bytes(json.dumps(content).encode(), url)


def read_json(url: str) -> Any:
    """Read the value of a scratch file that `write_json` wrote, also of an earlier version.

    Returns:
        The value; None if the file is missing, or damaged, which is logged.
    """
    try:
        content = storage.read_bytes(url)
        with reading(url):
            value = json.loads(content)
            # Earlier versions wrote the value alone, which had neither of these keys.
            if isinstance(value, dict) and {"value", "blake2b"} & value.keys():
                if value.keys() != {"value", "blake2b"} or (
                    value["blake2b"] != _checksum(value["value"])
                ):
                    raise ValueError("its content does not have its checksum")
                value = value["value"]
            return value
    except MissingFileError:
        return None
    except DamagedFileError as error:
        log.warning("%s: it is made again", error)
        return None


def _checksum(value: Any) -> str:
    return _digest(json.dumps(value, sort_keys=True).encode()).hex()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()


class RunTasks(beam.PTransform):
    """Run the tasks of a step: (task number, argument) -> (task number, result).

    Args:
        name: Name of the step.
        function: Function that runs one task.
        markers: Folder for the markers of finished tasks.
    """

    def __init__(self, name: str, function: TaskFunction, markers: str) -> None:
        super().__init__(name)
        self._task = _RunTask(function, storage.join(markers, name))

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        """Spread the tasks over the workers and run them."""
        return (
            tasks
            | "Spread" >> beam.Reshuffle()
            | "Run" >> beam.ParDo(self._task).with_output_types(tuple[int, Result])
        )


class AllResults(beam.PTransform):
    """Collect the results of a step into one list, once all tasks are finished."""

    def expand(self, results: beam.PCollection) -> beam.PCollection:
        """Group all results under one key: the group is complete when the step is."""
        return (
            results
            | "Key" >> beam.Map(_under_one_key).with_output_types(tuple[int, Any])
            | "Wait" >> beam.GroupByKey()
            | "List" >> beam.MapTuple(_as_list).with_output_types(list[Any])
        )


class NextTasks(beam.PTransform):
    """Emit the task numbers of the next step, once all results of a step are there."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(name)
        self._number = number

    def expand(self, results: beam.PCollection) -> beam.PCollection:
        """Wait for all results, then emit the numbers."""
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


class _RunTask(beam.DoFn):
    def __init__(self, function: TaskFunction, markers: str) -> None:
        self._function = function
        self._markers = markers

    def process(self, task: tuple[int, Any]) -> Iterator[tuple[int, Result]]:
        number, argument = task
        marker = marker_url(self._markers, number)
        result: Result | None = read_json(marker)
        if result is None:
            result = self._function(number, argument)
            write_json(result, marker)
        yield number, result


def marker_url(markers: str, task: int) -> str:
    """Return the file that marks a task of a step as finished.

    Args:
        markers: Folder of the step.
        task: Number of the task.
    """
    return storage.join(markers, f"{task:06d}.json")
