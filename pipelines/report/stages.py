"""What a report says about the batch stages, by their listings, index and commit records.

Of a large stage not every commit record is read: `MAX_RECORDS`, evenly spaced, stand for all, and
what they count is scaled up. The number of shards and their bytes come from listings, and the
number of samples of a complete stage from its index, so these are exact whatever its size. Complete
retries of a complete stage are a part of it, as they are of its index.
"""

import io
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow.parquet as pq
import yaml

from transforms.core import storage
from transforms.core.errors import MissingFileError, reading
from transforms.core.shards import (
    CommitRecord,
    StageFolder,
    committed_shards,
    read_commits,
    read_success,
)
from transforms.core.stages import STAGES, stage_folder

MAX_RECORDS = 2000
MAX_FAILURE_FILES = 500


@dataclass(frozen=True)
class ShardTimes:
    """Seconds of work on a shard."""

    median: float
    p95: float
    slowest: float
    slowest_shard: int


@dataclass(frozen=True)
class StageSummary:
    """A batch stage: sums over its shards."""

    name: str
    unit: str
    complete: bool
    num_shards: int
    """Committed, those of complete retries among them."""
    planned_shards: int | None
    num_records_read: int
    """Commit records that times and counts come from; fewer than shards: they are estimates."""
    num_samples: int
    num_failures: int
    num_bytes: int
    """Of everything that the stage has stored."""
    seconds: float
    """Of work, summed over shards: with two workers it passes twice as fast."""
    shard_seconds: ShardTimes
    """Without retries."""
    images_per_sample: int
    """Images of a sample; 0 where there are none."""
    counts: Mapping[str, int]
    failures: Mapping[str, int]
    """Dead letters by reason: those of the last complete retry, which had all others to paint."""
    settings: Mapping[str, Any]
    """What `run.yaml` says: config, fingerprint, versions."""

    @property
    def estimated(self) -> bool:
        """Whether times, counts and failures by reason are estimates."""
        return self.num_records_read < self.num_shards

    def per_second(self, number: float) -> float:
        """A number that the stage made, per second of work."""
        return number / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class _Commits:
    """The commit records of a folder, or some that stand for all."""

    num_shards: int
    records: Sequence[CommitRecord]

    @property
    def scale(self) -> float:
        """Shards that a record stands for."""
        return self.num_shards / max(len(self.records), 1)

    def total(self, value: Callable[[CommitRecord], float]) -> float:
        """The sum of a value over all shards."""
        return self.scale * sum(map(value, self.records))

    def counts(self) -> Counter[str]:
        """The sums of all counters over all shards."""
        read: Counter[str] = Counter()
        for record in self.records:
            read.update(record.counts)
        return Counter({name: round(self.scale * number) for name, number in read.items()})


def summarise(run: str, name: str) -> tuple[StageSummary | None, Sequence[CommitRecord]]:
    """A stage in numbers, and its own commit records that were read; None if it has not run."""
    folder = stage_folder(run, name)
    own = _commits(folder)
    if not own.records:
        return None, []
    planned = _planned(folder)
    success = read_success(folder)
    if success is not None and planned not in (None, success["num_shards"]):
        success = None  # Of a stage that is to grow.
    retries = _complete_retries(folder) if success else []
    parts = [own, *map(_commits, retries)]
    settings = read_settings(folder.run_yaml_url)
    summed = success or {
        "num_samples": round(own.total(lambda record: record.num_samples)),
        "num_failures": round(own.total(lambda record: record.num_failures)),
    }
    counts = sum((part.counts() for part in parts), Counter[str]())
    images = int(settings.get("config", {}).get("images_per_caption", 0)) if name == "images" else 0
    summary = StageSummary(
        name=name,
        unit=STAGES[name].unit,
        complete=success is not None,
        num_shards=sum(part.num_shards for part in parts),
        planned_shards=planned,
        num_records_read=sum(len(part.records) for part in parts),
        num_samples=summed["num_samples"],
        num_failures=summed.get("num_failures", 0),
        num_bytes=sum(storage.list_files(folder.url).values()),
        seconds=sum(part.total(lambda record: record.seconds) for part in parts),
        shard_seconds=_times(own.records),
        images_per_sample=images,
        counts=dict(sorted(counts.items())),
        failures=_failures(storage.join([folder, *retries][-1].url, "failures")),
        settings=settings,
    )
    return summary, own.records


def read_settings(url: str) -> dict[str, Any]:
    """What a `run.yaml` holds; nothing if it is not there."""
    try:
        content = storage.read_bytes(url)
    except MissingFileError:
        return {}
    return parsed(url, content, lambda c: dict(yaml.safe_load(c)))


_Item = TypeVar("_Item")
_Content = TypeVar("_Content")
_Parsed = TypeVar("_Parsed")


def spread(items: Sequence[_Item], number: int) -> list[_Item]:
    """At most `number` items, evenly spaced."""
    number = min(number, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * number)] for i in range(number)]


def parsed(url: str, content: _Content, parse: Callable[[_Content], _Parsed]) -> _Parsed:
    """What `parse` makes of the content of a file.

    Raises:
        DamagedFileError: The file does not hold what it must.
    """
    with reading(url):
        return parse(content)


def _commits(folder: StageFolder) -> _Commits:
    committed = sorted(committed_shards(folder))
    chosen = spread(committed, MAX_RECORDS)
    return _Commits(len(committed), list(read_commits(folder, chosen)))


def _complete_retries(folder: StageFolder) -> list[StageFolder]:
    """In their order, as the index takes them."""
    retries: list[StageFolder] = []
    while read_success(retry := folder.retry(len(retries) + 1)) is not None:
        retries.append(retry)
    return retries


def _times(records: Sequence[CommitRecord]) -> ShardTimes:
    seconds = sorted((record.seconds, record.shard) for record in records)
    slowest, shard = seconds[-1]
    p95 = seconds[int(0.95 * (len(seconds) - 1))][0]
    return ShardTimes(statistics.median(time for time, _ in seconds), p95, slowest, shard)


def _planned(folder: StageFolder) -> int | None:
    try:
        content = storage.read_bytes(folder.plan_url)
    except MissingFileError:
        return None
    return parsed(folder.plan_url, content, lambda c: int(json.loads(c)["num_shards"]))


def _failures(url: str) -> dict[str, int]:
    names = sorted(storage.list_files(url))
    chosen = spread(names, MAX_FAILURE_FILES)
    reasons: Counter[str] = Counter()
    for name in chosen:
        path = storage.join(url, name)
        content = storage.read_bytes(path)
        table = parsed(path, content, lambda c: pq.read_table(io.BytesIO(c), columns=["reason"]))
        reasons.update(table["reason"].to_pylist())
    return {key: round(n * len(names) / len(chosen)) for key, n in sorted(reasons.items())}
