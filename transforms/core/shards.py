"""Stages on storage: what the shards of a stage are, names of files, and commit records.

    <stage>/run.yaml  plan.json
            shards/012/images-012345.tar
            commits/012/images-012345.json
            failures/012/images-012345.parquet
            index.parquet  _SUCCESS
            retry-1/...                     a stage of its own: dead letters of this one, made again

The commit record is the commit: a shard file without one was left by a worker that died, and the
next worker adopts it. Readers use the index only (`shard_reader`).

A folder holds the files of 1,000 consecutive shards, so that several folders can be listed at once.
A plan is worked through in random order: writing is spread over all folders, as suits a store that
splits its load by name.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from transforms.core import storage
from transforms.core.checksums import add_checksum, remove_checksum
from transforms.core.errors import DamagedFileError

SHARDS_PER_FOLDER = 1000

_CHUNK = 4096
"""Commit records in memory at a time."""
_LOCAL_READERS, _REMOTE_READERS = 4, 64
"""Threads that read commit records: a disk answers at once, a server takes its time."""

ShardIds = Callable[[int], Sequence[str] | None]
"""Number of a shard -> ids of its records in order, or None if they are not known."""


class Contents(NamedTuple):
    """What the check of a shard file found."""

    ids: list[str]
    """Record ids of the samples, in the order of the file."""
    faults: list[str]
    """What is wrong with the samples: sentences whose subject is the shard."""


class ShardFormat(Protocol):
    """File format of shards: `parquet_shards.ParquetShards`, `tar_shards.ImageTars`. It pickles."""

    @property
    def suffix(self) -> str:
        """Suffix of the files, for instance ".tar"."""

    def write(self, path: str, records: Iterable[Any] | pa.Table) -> list[str]:
        """Write a shard to local disk; return the record ids in the order of the file."""

    def read_ids(self, path: str) -> list[str]:
        """Return the record ids of a shard on local disk, in the order of the file."""

    def check(self, content: bytes, metadata: Mapping[str, str], decode: bool) -> Contents:
        """Check the content of a shard; errors of parsers on damaged content pass through.

        Args:
            content: Content of the file.
            metadata: Metadata of the stage, as in `plan.json`.
            decode: Whether to decode images.
        """


def _is_retry(name: str) -> bool:
    return name.startswith("retry-") and name.removeprefix("retry-").isdecimal()


def unknown_ids(folder: "StageFolder", config: Mapping[str, Any], num_records: int) -> ShardIds:
    """Say of every shard that its record ids are not known."""
    return lambda shard: None


@dataclass(frozen=True, kw_only=True)
class StageKind:
    """One kind of stage: everything that differs between stages; see `stages.STAGES`."""

    folder: str
    """Name of its folder in a run."""
    title: str
    """Title in reports."""
    command: str
    """Command that makes its shards; with "_" for "-", the module of the job in `pipelines`."""
    help: str
    """What the command does, one line."""
    retry_command: str | None = None
    """Command that makes its dead letters again."""
    optional: bool = False
    """Whether a run may do without it."""
    shards_share_work: bool = False
    """Whether a task makes many shards at once, so that the time of a shard has no meaning."""
    file_prefix: str
    """First part of the names of its files."""
    unit: str
    """What records are called in progress bars, in the plural."""
    format: ShardFormat
    """How its records are stored."""
    expected_ids: Callable[["StageFolder", Mapping[str, Any], int], ShardIds] = unknown_ids
    """Returns the record ids that each shard must hold, as far as they follow from the folder, the
    resolved config and the number of records; `verify` compares."""


@dataclass(frozen=True)
class StageFolder:
    """Output folder of a stage.

    Attributes:
        url: Folder or URL, for instance `gs://bucket/run/images`.
        kind: What is in it. It travels with the folder, so workers on other machines need no
            registry.
    """

    url: str
    kind: StageKind

    def _path(self, subfolder: str, shard: int, suffix: str) -> str:
        thousand = f"{shard // SHARDS_PER_FOLDER:03d}"
        return f"{subfolder}/{thousand}/{self.kind.file_prefix}-{shard:06d}{suffix}"

    def shard_path(self, shard: int) -> str:
        """Return the name of a shard file relative to the folder."""
        return self._path("shards", shard, self.kind.format.suffix)

    def shard_url(self, shard: int) -> str:
        """Return the URL of a shard file."""
        return storage.join(self.url, self.shard_path(shard))

    def commit_url(self, shard: int) -> str:
        """Return the URL of the commit record of a shard."""
        return storage.join(self.url, self._path("commits", shard, ".json"))

    def failures_url(self, shard: int) -> str:
        """Return the URL of the dead letters of a shard; only shards with failures have one."""
        return storage.join(self.url, self._path("failures", shard, ".parquet"))

    def retry(self, number: int) -> "StageFolder":
        """Return the folder of the first, second, ... retry of this stage's dead letters."""
        return StageFolder(storage.join(self.url, f"retry-{number}"), self.kind)

    def owner(self, path: str) -> "StageFolder":
        """Return the folder that made a shard of this stage's index: this one, or a retry's."""
        first = StageFolder(storage.join(self.url, path.partition("/")[0]), self.kind)
        return first if first.is_retry else self

    @property
    def is_retry(self) -> bool:
        """Whether this is the folder of a retry."""
        return _is_retry(self.url.rpartition("/")[2])

    @property
    def parent_url(self) -> str:
        """The folder around this one: the run, or the stage that a retry belongs to."""
        return self.url.rpartition("/")[0]

    @property
    def command(self) -> str:
        """The command that makes its shards."""
        retry = self.kind.retry_command if self.is_retry else None
        return retry or self.kind.command

    @property
    def commands(self) -> str:
        """The commands that make its shards again, for sentences.

        A retry starts when the stage that it retries has an index without it.
        """
        names = dict.fromkeys(
            [self.kind.command, self.command] if self.is_retry else [self.command]
        )
        return ", then ".join(f"`python -m pipelines {name}`" for name in names)

    @property
    def verify_command(self) -> str:
        """The command that checks all files of its run, for sentences."""
        return f"`python -m pipelines verify {self._run_and_name[0]}`"

    @property
    def repair_command(self) -> str:
        """The command that deletes the damaged files of its run, for sentences."""
        return f"`python -m pipelines verify {self._run_and_name[0]} repair=true`"

    @property
    def index_command(self) -> str:
        """The command that writes its index again, for sentences."""
        run, name = self._run_and_name
        return f"`python -m pipelines index {run} stage={name}`"

    @property
    def _run_and_name(self) -> tuple[str, str]:
        """The run as a word of a shell, and the name of this folder in it.

        A stage may also be in a folder of its own; then the person has to know its run.
        """
        run, _, name = self.url.rpartition("/")
        while _is_retry(name.partition("/")[0]) or _is_retry(run.rpartition("/")[2]):
            run, _, outer = run.rpartition("/")
            name = f"{outer}/{name}"
        in_run = name == self.kind.folder or "/" in name
        return shlex.quote(run or "/") if in_run else "RUN", name

    @property
    def run_yaml_url(self) -> str:
        """The resolved config and fingerprint of the output."""
        return storage.join(self.url, "run.yaml")

    @property
    def plan_url(self) -> str:
        """The planned numbers, for commands that have no config, like `status`."""
        return storage.join(self.url, "plan.json")

    @property
    def index_url(self) -> str:
        """The table of all shards."""
        return storage.join(self.url, "index.parquet")

    @property
    def success_url(self) -> str:
        """The marker of a complete stage."""
        return storage.join(self.url, "_SUCCESS")


@dataclass(frozen=True)
class CommitRecord:
    """Facts about a committed shard."""

    shard: int
    path: str
    sha256: str
    num_bytes: int
    num_samples: int
    num_failures: int
    fingerprint: str
    seconds: float
    """Time from the start of production to the publication of the shard file."""
    counts: dict[str, int]
    """Counters of the worker that committed the shard, by `counters.Count` name."""
    versions: dict[str, str]


_COMMIT_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("shard", "num_bytes", "num_samples", "num_failures"), (int,)),
    **dict.fromkeys(("path", "sha256", "fingerprint"), (str,)),
    **{"seconds": (int, float), "counts": (dict,), "versions": (dict,)},
}
"""Types of the values in a commit record's JSON."""

_CHECKSUM = "record_sha256"
"""Key of a commit record's checksum."""


def encode_commit(record: CommitRecord) -> bytes:
    """Return a commit record as JSON, with a checksum of its other values."""
    content = add_checksum(dataclasses.asdict(record), _CHECKSUM)
    return json.dumps(content, indent=1, sort_keys=True).encode("utf-8")


def decode_commit(content: bytes) -> CommitRecord:
    """Return the commit record that JSON holds; one without a checksum was written earlier.

    Raises:
        ValueError: It is not a commit record, or its checksum is another one.
    """
    values = remove_checksum(json.loads(content), _CHECKSUM, _COMMIT_TYPES)
    missing = sorted(_COMMIT_TYPES.keys() - values.keys())
    if missing:
        raise ValueError(f"key {missing[0]!r} is missing")
    for key, types in _COMMIT_TYPES.items():
        _check_type(key, values[key], types)
    for key, kind in (("counts", int), ("versions", str)):
        for name, value in values[key].items():
            _check_type(f"{key}.{name}", value, (kind,))
    return CommitRecord(**values)


def read_commit(folder: StageFolder, shard: int) -> CommitRecord:
    """Read the commit record of a shard.

    Raises:
        DamagedFileError: The file is not the commit record of this shard.
        MissingFileError: The shard is not committed.
    """
    url = folder.commit_url(shard)
    content = storage.read_bytes(url)
    try:
        record = decode_commit(content)
        if (record.shard, record.path) != (shard, folder.shard_path(shard)):
            raise ValueError(f"it is about shard {record.shard}, {record.path}")
    except ValueError as error:
        raise DamagedFileError(
            f"commit record {url} is damaged ({error}); delete it and run "
            f"{folder.commands} again: the shard is then adopted or made again"
        ) from error
    return record


def _check_type(key: str, value: object, types: tuple[type, ...]) -> None:
    if type(value) not in types:
        expected = " or ".join(kind.__name__ for kind in types)
        raise ValueError(f"key {key!r} has value {value!r}: expected {expected}")


def read_commits(folder: StageFolder, shards: Sequence[int]) -> Iterator[CommitRecord]:
    """Read the commit records of many shards, in the order of `shards`, a few thousand at a time.

    Raises:
        DamagedFileError: A file is not the commit record of its shard.
        MissingFileError: A shard is not committed.
    """
    readers = _LOCAL_READERS if storage.is_local(folder.url) else _REMOTE_READERS
    with ThreadPoolExecutor(readers, "commits") as pool:
        for start in range(0, len(shards), _CHUNK):
            yield from pool.map(partial(read_commit, folder), shards[start : start + _CHUNK])


def committed_shards(folder: StageFolder) -> set[int]:
    """Return the numbers of the shards that have a commit record, by one listing."""
    prefix, names = folder.kind.file_prefix, storage.list_files(storage.join(folder.url, "commits"))
    numbers = (name.rpartition("-")[2].removesuffix(".json") for name in names)
    found = zip(
        names, (int(number) if number.isdecimal() else -1 for number in numbers), strict=True
    )
    return {
        number
        for name, number in found
        # Other names are files that no stage writes.
        if name == f"{number // SHARDS_PER_FOLDER:03d}/{prefix}-{number:06d}.json"
    }


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a local file, 64 hex digits, as commit records hold it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
