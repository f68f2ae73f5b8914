"""Stages of a run: the registry, and what a job hands to the code that runs its stage.

A new stage needs a producer, a job module `pipelines/<command>.py` and one entry in `STAGES`. A new
class of records is a dataclass in `records`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from typing import Any, NamedTuple, Protocol

from transforms.core import storage
from transforms.core.checksums import add_checksum, remove_checksum
from transforms.core.counters import Tally
from transforms.core.errors import DamagedFileError, MissingFileError
from transforms.core.fingerprint import Fingerprint, decode_run
from transforms.core.index import read_index
from transforms.core.parquet_shards import BACKGROUND_SHARDS, CAPTION_SHARDS
from transforms.core.references import resolved, whole_number
from transforms.core.shard_reader import RowReader
from transforms.core.shards import (
    ShardIds,
    StageFolder,
    StageKind,
    committed_shards,
    unknown_ids,
)
from transforms.core.tar_shards import ImageTars

Produced = Any
"""A record of the stage, or a `Failure`."""


class Producer(Protocol):
    """Makes the records of a shard. It is pickled: config and references only, no model inside."""

    def setup(self) -> None:
        """Load the model. Called once per worker process, before the first shard."""

    def record_ids(self, shard: int) -> list[str]:
        """Return the ids of a shard's records, in order; each becomes a sample or a failure."""

    def produce(self, shard: int, tally: Tally) -> Iterable[Produced]:
        """Make the records of a shard; an exception loses the work on the shard.

        The model and the tally are used before this returns (so it is no generator): another thread
        iterates over the records, while this one may make the next shard.
        """


@dataclass(frozen=True, kw_only=True)
class StageOutput:
    """What a stage is to make, and where: all that planning, progress and the index need."""

    folder: StageFolder
    fingerprint: Fingerprint
    config: Mapping[str, Any]
    """Resolved config as it is stored with the output, see `Config.written`."""
    num_shards: int
    num_records: int
    """Records of all shards; the last shard may be shorter than the others."""
    why_so_many: str = ""
    """Explanation of that number for people, if it is not what the config asks for."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Facts that readers of the index need, for instance images_per_caption."""
    libraries: Sequence[str] = ()
    """Libraries whose versions may change the bytes, see `fingerprint.accept_versions`."""
    strict_versions: bool = False
    """True if the stage may only go on with the library versions that it was begun with."""

    @property
    def unit(self) -> str:
        """What records are called, for instance "captions"."""
        return self.folder.kind.unit

    def expected_ids(self) -> ShardIds:
        """Return the record ids that each shard must hold, as far as they are known."""
        config = resolved(self.config)
        return self.folder.kind.expected_ids(self.folder, config, self.num_records)


@dataclass(frozen=True, kw_only=True)
class Stage(StageOutput):
    """A stage whose shards are made independently of each other."""

    producer: Producer
    feeds: StageFolder | None = None
    """Stage that is made from this one; None if shards that are made again have the same bytes."""


def _raw_caption_ids(folder: StageFolder, config: Mapping[str, Any], num_records: int) -> ShardIds:
    """Return the ordinals of each shard."""
    per_shard = whole_number(config.get("captions_per_shard"))
    if per_shard is None:
        return unknown_ids(folder, config, num_records)
    ordinals = range(num_records)
    return lambda shard: [str(n) for n in ordinals[shard * per_shard :][:per_shard]]


def _painted_caption_ids(
    folder: StageFolder, config: Mapping[str, Any], num_records: int
) -> ShardIds:
    """Return the caption ids of each image shard, read from the captions that are painted."""
    per_shard = whole_number(config.get("captions_per_shard"))
    url = storage.join(folder.url if folder.is_retry else folder.parent_url, "captions")
    if not folder.is_retry:
        url = config.get("captions") or url
    captions = StageFolder(url, STAGES["captions"])
    if per_shard is None or not storage.exists(captions.index_url):
        return unknown_ids(folder, config, num_records)
    rows = cache(partial(RowReader.open, captions))

    def caption_ids(shard: int) -> Sequence[str]:
        start = shard * per_shard
        table = rows().read(start, start + per_shard, ["caption_id"])
        ids: list[str] = table["caption_id"].to_pylist()
        return ids

    return caption_ids


STAGES: dict[str, StageKind] = {
    kind.folder: kind
    for kind in (
        StageKind(
            folder="backgrounds",
            title="Backgrounds",
            command="backgrounds",
            help="find plausible places for every concept with a language model",
            optional=True,
            file_prefix="backgrounds",
            unit="concepts",
            format=BACKGROUND_SHARDS,
        ),
        StageKind(
            folder="captions-raw",
            title="Captions, as written",
            command="captions",
            help="write captions about concepts with a language model",
            file_prefix="captions",
            unit="captions",
            format=CAPTION_SHARDS,
            expected_ids=_raw_caption_ids,
        ),
        StageKind(
            folder="captions",
            title="Captions, curated",
            command="curate",
            help="remove duplicate captions, shuffle the rest, write shards of equal size",
            shards_share_work=True,
            file_prefix="captions",
            unit="captions",
            format=CAPTION_SHARDS,
        ),
        StageKind(
            folder="images",
            title="Images",
            command="images",
            help="paint the images of every caption with a diffusion model",
            retry_command="retry-failed",
            file_prefix="images",
            unit="image sets",
            format=ImageTars(),
            expected_ids=_painted_caption_ids,
        ),
    )
}
"""Every stage by the name of its folder, in the order in which a run makes them."""


def stage_folder(run: str, name: str) -> StageFolder:
    """Return the folder of a stage of a run.

    Args:
        run: Folder or URL of the run.
        name: Name of the stage's folder, a key of `STAGES`, or of a retry: "images/retry-1".
    """
    return StageFolder(storage.join(run, name), STAGES[name.partition("/")[0]])


def write_plan(output: StageOutput) -> None:
    """Write `plan.json`: how much the stage is to make. A stage that grows writes it again."""
    plan = {
        "name": output.folder.kind.file_prefix,
        "suffix": output.folder.kind.format.suffix,
        "num_shards": output.num_shards,
        "num_records": output.num_records,
        "unit": output.unit,
        "metadata": dict(output.metadata),
    }
    text = json.dumps(add_checksum(plan, _CHECKSUM), indent=1, sort_keys=True)
    storage.update_bytes(text.encode("utf-8"), output.folder.plan_url)


_PLAN_KEYS = {"name", "suffix", "num_shards", "num_records", "unit", "metadata"}
_CHECKSUM = "plan_sha256"
"""Key of a plan's checksum."""


def _decode_plan(content: bytes) -> dict[str, Any]:
    """Return the values of `plan.json`.

    Raises:
        KeyError: A key is missing.
        ValueError: It holds something else, or its content does not have its checksum.
    """
    plan = remove_checksum(json.loads(content), _CHECKSUM, _PLAN_KEYS)
    _check_types(plan, {"num_shards": int, "num_records": int, "metadata": dict})
    return plan


def read_output(folder: StageFolder) -> StageOutput | None:
    """Return the output that `run.yaml` and `plan.json` of a folder describe; None without them.

    Raises:
        DamagedFileError: A file is damaged, or describes another kind of stage.
    """
    try:
        plan_text = storage.read_bytes(folder.plan_url)
        run_text = storage.read_bytes(folder.run_yaml_url)
    except MissingFileError:
        return None
    try:
        plan = _decode_plan(plan_text)
        run = decode_run(run_text)
        files, kind = (plan["name"], plan["suffix"]), folder.kind
        if files != (kind.file_prefix, kind.format.suffix):
            raise ValueError(f"its files are {files[0]}-*{files[1]}")
        _check_types(run, {"fields": dict, "config": dict})
        return StageOutput(
            folder=folder,
            fingerprint=Fingerprint.recorded(run),
            config=run["config"],
            num_shards=plan["num_shards"],
            num_records=plan["num_records"],
            metadata=plan["metadata"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(
            f"{folder.run_yaml_url} or plan.json next to it is damaged "
            f"({type(error).__name__} {error}): expected what the {folder.kind.folder} stage "
            f"writes; run {folder.commands} to write it again"
        ) from error


def _check_types(values: Mapping[str, Any], types: Mapping[str, type]) -> None:
    for key, expected in types.items():
        if type(values[key]) is not expected:
            raise ValueError(f"key {key!r} has value {values[key]!r}: expected {expected.__name__}")


class Unreadable(NamedTuple):
    """A stage or retry that was started, but whose `run.yaml` or `plan.json` cannot be read."""

    folder: StageFolder
    file: str
    """Name of the file; if both are lost, that of the plan."""
    what: str
    """Sentence for people without its subject: the fault, and the command to run."""


def find_outputs(run: str, stages: Iterable[str] | None = None) -> Iterator[StageOutput]:
    """Yield the stages of a run that were started, in order, each followed by its retries.

    Args:
        run: Folder or URL of the run.
        stages: Names of their folders; None for all of `STAGES`.

    Raises:
        DamagedFileError: The `run.yaml` or `plan.json` of one is damaged.
    """
    for name in STAGES if stages is None else stages:
        for folder in _with_retries(run, name):
            output = read_output(folder)
            if output is None:
                break
            yield output


def survey(run: str) -> tuple[list[StageOutput], list[Unreadable]]:
    """Return the stages and retries of a run, and those that cannot be read.

    Retries after one that cannot be read are left out, and folders that no stage has made.
    """
    outputs: list[StageOutput] = []
    unreadable: list[Unreadable] = []
    for name in STAGES:
        for folder in _with_retries(run, name):
            try:
                output = read_output(folder)
            except DamagedFileError as error:
                file = "run.yaml" if _has_intact_plan(folder) else "plan.json"
                unreadable.append(Unreadable(folder, file, str(error)))
                break
            if output is None:
                if _was_started(folder):
                    unreadable.append(_without_settings(folder))
                break
            outputs.append(output)
    return outputs, unreadable


def _with_retries(run: str, name: str) -> Iterator[StageFolder]:
    """Yield the folder of a stage, then those of its retries without end."""
    first = stage_folder(run, name)
    yield first
    yield from map(first.retry, count(1))


def _has_intact_plan(folder: StageFolder) -> bool:
    try:
        _decode_plan(storage.read_bytes(folder.plan_url))
    except (MissingFileError, ValueError, KeyError):
        return False
    return True


def _was_started(folder: StageFolder) -> bool:
    """Return whether a folder that lost its `run.yaml`, its `plan.json` or both was a stage's.

    A stage writes its fingerprint into its index; other programs that write shards have none.
    """
    if not committed_shards(folder):
        return False
    try:
        return "fingerprint" in read_index(folder.index_url).metadata
    except (DamagedFileError, MissingFileError):
        return True


def _without_settings(folder: StageFolder) -> Unreadable:
    file = "run.yaml" if storage.exists(folder.plan_url) else "plan.json"
    commands = folder.commands
    what = f"is lost, so the shards cannot be checked: run {commands} to write it again"
    return Unreadable(folder, file, what)
