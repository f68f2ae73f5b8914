"""What a report says about a run, gathered from the files that the stages left.

Everything comes from commit records, dead letters, metrics and scores, so the report of a run is
the same whenever and wherever it is made. A stage that has not run is `None`, not an error.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow.parquet as pq
import yaml

from transforms.core import storage
from transforms.core.shards import CommitRecord, DamagedFileError

STAGES = {"captions-raw": "captions", "captions": "captions", "images": "image sets"}
"""Folders of the batch stages, in their order, and what their records are."""

_READERS = 16
_EXAMPLE_SHARDS = 8


@dataclass(frozen=True)
class StageSummary:
    """A batch stage: sums over its commit records."""

    name: str
    unit: str
    complete: bool
    num_shards: int
    num_samples: int
    num_failures: int
    num_bytes: int
    seconds: float
    """Of work, summed over shards: with two workers it passes twice as fast."""
    images_per_sample: int
    """Images of a sample; 0 for captions."""
    counts: Mapping[str, int]
    failures: Mapping[str, int]
    """Dead letters by reason."""
    settings: Mapping[str, Any]
    """What `run.yaml` says: config, fingerprint, versions."""


@dataclass(frozen=True)
class Example:
    """A caption with its images."""

    text: str
    concept: str
    images: tuple[bytes, ...]


@dataclass(frozen=True)
class TrainingSummary:
    """The training: each logged value over the steps."""

    curves: Mapping[str, Sequence[tuple[int, float]]]
    """Name -> (step, value), ascending."""
    settings: Mapping[str, Any]

    @property
    def last_step(self) -> int:
        """The last step that was logged, counted from 1."""
        return 1 + max(points[-1][0] for points in self.curves.values())


@dataclass(frozen=True)
class Score:
    """One line of the score sheet, in percent."""

    dataset: str
    protocol: str
    metric: str
    encoder: str
    value: float
    error: float | None
    chance: float | None


@dataclass(frozen=True)
class RunReport:
    """Everything on the page."""

    run: str
    stages: Mapping[str, StageSummary | None]
    examples: Sequence[Example]
    training: TrainingSummary | None
    scores: Sequence[Score]


def gather(run: str, num_examples: int) -> RunReport:
    """Read a run.

    Raises:
        DamagedFileError: A file of it does not hold what it must.
        StorageError: A file cannot be read.
    """
    stages, examples = {}, []
    for name, unit in STAGES.items():
        url = storage.join(run, name)
        records = _commits(url)
        stages[name] = _summary(url, name, unit, records)
        if name == "images":
            examples = _examples(url, records, num_examples)
    return RunReport(run, stages, examples, _training(run), _scores(run))


def _commits(url: str) -> list[CommitRecord]:
    names = sorted(storage.list_files(storage.join(url, "commits")))

    def read(name: str) -> CommitRecord:
        path = storage.join(url, "commits", name)
        return _parsed(path, storage.read_bytes(path), lambda c: CommitRecord(**json.loads(c)))

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, names))


def _summary(
    url: str, name: str, unit: str, records: Sequence[CommitRecord]
) -> StageSummary | None:
    if not records:
        return None
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.counts)
    images = 0
    settings = _settings(storage.join(url, "run.yaml"))
    if unit == "image sets":
        images = int(settings.get("config", {}).get("images_per_caption", 0))
    return StageSummary(
        name=name,
        unit=unit,
        complete=storage.exists(storage.join(url, "_SUCCESS")),
        num_shards=len(records),
        num_samples=sum(record.num_samples for record in records),
        num_failures=sum(record.num_failures for record in records),
        num_bytes=sum(record.num_bytes for record in records),
        seconds=sum(record.seconds for record in records),
        images_per_sample=images,
        counts=dict(sorted(counts.items())),
        failures=_failures(storage.join(url, "failures")),
        settings=settings,
    )


def _failures(url: str) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for name in sorted(storage.list_files(url)):
        path = storage.join(url, name)
        content = storage.read_bytes(path)
        table = _parsed(path, content, lambda c: pq.read_table(io.BytesIO(c), columns=["reason"]))
        reasons.update(table["reason"].to_pylist())
    return dict(sorted(reasons.items()))


def _settings(url: str) -> dict[str, Any]:
    try:
        content = storage.read_bytes(url)
    except storage.MissingFileError:
        return {}
    return _parsed(url, content, lambda c: dict(yaml.safe_load(c)))


def _examples(url: str, records: Sequence[CommitRecord], number: int) -> list[Example]:
    """Captions and their images, spread evenly over the shards."""
    holding = [record for record in records if record.num_samples]
    chosen = _spread(holding, min(number, _EXAMPLE_SHARDS))
    examples: list[Example] = []
    for place, record in enumerate(chosen):
        path = storage.join(url, record.path)
        wanted = number * (place + 1) // len(chosen) - number * place // len(chosen)
        samples = _parsed(path, storage.read_bytes(path), _tar_samples)
        examples += [_example(sample) for sample in _spread(samples, wanted)]
    return examples


def _tar_samples(content: bytes) -> list[dict[str, bytes]]:
    """The samples of a shard: extension -> content."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            file = archive.extractfile(member)
            if file is not None:
                samples.setdefault(key, {})[extension] = file.read()
    return list(samples.values())


def _example(sample: Mapping[str, bytes]) -> Example:
    images = tuple(sample[name] for name in sorted(sample) if name[0].isdigit())
    return Example(sample["txt"].decode(), json.loads(sample["json"])["concept"], images)


def _training(run: str) -> TrainingSummary | None:
    url = storage.join(run, "train", "metrics.jsonl")
    try:
        content = storage.read_bytes(url).decode("utf-8", errors="replace")
    except storage.MissingFileError:
        return None
    # A training that was killed may have left half a line.
    lines = [line for line in content.split("\n")[:-1] if line]
    curves: dict[str, list[tuple[int, float]]] = {}
    for values in _parsed(url, lines, lambda found: [json.loads(line) for line in found]):
        step = values.pop("step")
        for name, value in values.items():
            curves.setdefault(name, []).append((step, value))
    if not curves:
        return None
    return TrainingSummary(curves, _settings(storage.join(run, "train", "run.yaml")))


def _scores(run: str) -> list[Score]:
    url = storage.join(run, "scores", "scores.json")
    try:
        content = storage.read_bytes(url)
    except storage.MissingFileError:
        return []
    return _parsed(url, content, lambda c: [_score(row) for row in json.loads(c)])


def _score(row: Mapping[str, Any]) -> Score:
    error = row["spread"] if row.get("spread") is not None else row.get("error")
    return Score(
        row["dataset"],
        row["protocol"],
        row["metric"],
        row["encoder"],
        row["value"],
        error,
        row.get("chance"),
    )


_DAMAGE = (ValueError, KeyError, TypeError, tarfile.TarError, yaml.YAMLError)
"""What parsing raises on a file that does not hold what it must; Arrow's are ValueErrors."""

_Item = TypeVar("_Item")
_Content = TypeVar("_Content")
_Parsed = TypeVar("_Parsed")


def _spread(items: Sequence[_Item], number: int) -> list[_Item]:
    """At most `number` items, evenly spaced."""
    number = min(number, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * number)] for i in range(number)]


def _parsed(url: str, content: _Content, parse: Callable[[_Content], _Parsed]) -> _Parsed:
    try:
        return parse(content)
    except _DAMAGE as error:
        raise DamagedFileError(f"{url} is damaged: {type(error).__name__} {error}") from error


def score_table(scores: Iterable[Score]) -> tuple[list[str], list[list[Score | None]]]:
    """The score sheet as a table.

    Returns:
        The encoders, in the order of the rows; and per data set and protocol one line with the
        score of each encoder.
    """
    found = list(scores)
    encoders = list(dict.fromkeys(score.encoder for score in found))
    lines: dict[tuple[str, str, str], list[Score | None]] = {}
    for score in found:
        key = (score.dataset, score.protocol, score.metric)
        line = lines.setdefault(key, [None] * len(encoders))
        line[encoders.index(score.encoder)] = score
    return encoders, list(lines.values())
