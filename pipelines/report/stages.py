"""Numbers of the batch stages, from their listings, index and commit records.

Of a large stage only `MAX_RECORDS` commit records are read, evenly spaced, and their counts are
scaled up to all shards. The number of shards and their bytes come from listings, and the number of
samples of a complete stage from its index, so these are exact at any size. Complete retries of a
complete stage are included, as they are in its index.
"""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from transforms.core import storage
from transforms.core.dead_letters import read_letters, shards_with_letters
from transforms.core.errors import MissingFileError, reading
from transforms.core.index import complete_retries, examine
from transforms.core.references import resolved, whole_number
from transforms.core.shards import CommitRecord, StageFolder, committed_shards, read_commits
from transforms.core.stages import STAGES, stage_folder

MAX_RECORDS = 2000
MAX_FAILURE_FILES = 500


@dataclass(frozen=True)
class ShardTimes:
    """Distribution of the seconds of work over shards."""

    median: float
    p95: float
    slowest: float
    slowest_shard: int


@dataclass(frozen=True)
class StageSummary:
    """Numbers of a batch stage, summed over its shards."""

    name: str
    unit: str
    complete: bool
    num_shards: int
    """Number of committed shards, with those of complete retries."""
    planned_shards: int | None
    num_records_read: int
    """Number of commit records that were read; if less than `num_shards`, times and counts are
    estimates."""
    num_samples: int
    num_failures: int
    num_bytes: int
    """Size of all files in the stage's folder."""
    seconds: float
    """Work time summed over shards; with two workers the stage takes half of it."""
    shard_seconds: ShardTimes
    """Work time of a shard, without retries."""
    images_per_sample: int
    """Number of images of a sample; 0 if samples are captions."""
    counts: Mapping[str, int]
    """Sums of the counters of the commit records."""
    failures: Mapping[str, int]
    """Number of dead letters by reason, after the last complete retry."""
    settings: Mapping[str, Any]
    """Content of `run.yaml`: config, fingerprint, versions."""

    @property
    def title(self) -> str:
        """Title of the stage, for people."""
        return STAGES[self.name].title

    @property
    def estimated(self) -> bool:
        """True if times, counts and failures by reason are estimates."""
        return self.num_records_read < self.num_shards

    def per_second(self, number: float) -> float:
        """Return a number of things that the stage made, per second of work."""
        return number / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class _Commits:
    """Commit records of a folder: all, or a sample."""

    num_shards: int
    records: Sequence[CommitRecord]

    @property
    def scale(self) -> float:
        """Number of shards per record that was read."""
        return self.num_shards / max(len(self.records), 1)

    def total(self, value: Callable[[CommitRecord], float]) -> float:
        """Return the sum of a value over all shards, scaled up from the records."""
        return self.scale * sum(map(value, self.records))

    def counts(self) -> Counter[str]:
        """Return the sum of each counter over all shards, scaled up from the records."""
        read: Counter[str] = Counter()
        for record in self.records:
            read.update(record.counts)
        return Counter({name: round(self.scale * number) for name, number in read.items()})


def summarise(run: str, name: str) -> tuple[StageSummary | None, Sequence[CommitRecord]]:
    """Return the numbers of a stage and the commit records that were read, without retries.

    The numbers are None if nothing of the stage is committed.
    """
    folder = stage_folder(run, name)
    own = _commits(folder)
    if not own.records:
        return None, []
    planned = _planned(folder)
    success = examine(folder, planned).summary
    retries = [retry for retry, _ in complete_retries(folder)] if success else []
    parts = [own, *map(_commits, retries)]
    advice = f"delete it, then run {folder.commands} again"
    settings = read_settings(folder.run_yaml_url, advice)
    with reading(folder.run_yaml_url, advice):
        images_per_sample = _images_per_sample(settings)
    summed = success or {
        "num_samples": round(own.total(lambda record: record.num_samples)),
        "num_failures": round(own.total(lambda record: record.num_failures)),
    }
    counts = sum((part.counts() for part in parts), Counter[str]())
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
        images_per_sample=images_per_sample,
        counts=dict(sorted(counts.items())),
        failures=_failures([folder, *retries][-1]),
        settings=settings,
    )
    return summary, own.records


def read_settings(url: str, advice: str = "") -> dict[str, Any]:
    """Read a `run.yaml`; an empty dict if there is none.

    Args:
        url: Path or URL of the file.
        advice: What to do if it is damaged, for the sentence.
    """
    try:
        content = storage.read_bytes(url)
    except MissingFileError:
        return {}
    with reading(url, advice):
        return dict(yaml.safe_load(content))


def _images_per_sample(settings: Mapping[str, Any]) -> int:
    number = resolved(dict(settings.get("config", {}))).get("images_per_caption", 0)
    return whole_number(number) or 0  # It may come from another environment.


_Item = TypeVar("_Item")


def spread(items: Sequence[_Item], number: int) -> list[_Item]:
    """Return at most `number` items, evenly spaced."""
    number = min(number, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * number)] for i in range(number)]


def _commits(folder: StageFolder) -> _Commits:
    committed = sorted(committed_shards(folder))
    chosen = spread(committed, MAX_RECORDS)
    return _Commits(len(committed), list(read_commits(folder, chosen)))


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
    with reading(folder.plan_url, f"run {folder.commands} to write it again"):
        return int(json.loads(content)["num_shards"])


def _failures(folder: StageFolder) -> dict[str, int]:
    shards = shards_with_letters(folder)
    chosen = spread(shards, MAX_FAILURE_FILES)
    reasons: Counter[str] = Counter()
    for shard in chosen:
        reasons.update(read_letters(folder, shard, ["reason"])["reason"].to_pylist())
    return {key: round(n * len(shards) / len(chosen)) for key, n in sorted(reasons.items())}
