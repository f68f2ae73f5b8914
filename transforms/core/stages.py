"""Stages of a run: what a job hands to the code that runs it, and what the folders say of it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import yaml

from transforms.core import storage
from transforms.core.counters import Tally
from transforms.core.errors import DamagedFileError, MissingFileError
from transforms.core.fingerprint import Fingerprint
from transforms.core.records import Backgrounds, Caption, Failure, ImageSet
from transforms.core.shards import StageFolder

Record = Backgrounds | Caption | ImageSet
Produced = Record | Failure


class Producer(Protocol):
    """Makes the records of a shard. It is pickled: config and references only, no model inside."""

    def setup(self) -> None:
        """Load the model. Called once per worker process, before the first shard."""

    def record_ids(self, shard: int) -> list[str]:
        """Every record the shard owes, in order; each ends as a sample or as a failure."""

    def produce(self, shard: int, tally: Tally) -> Iterable[Produced]:
        """Make the shard's records; an exception loses the shard's work.

        The model and the tally are used before this returns (so it is no generator): another thread
        iterates over the records, while this one may make the next shard.
        """


@dataclass(frozen=True, kw_only=True)
class StageOutput:
    """What a stage is to make, and where: all that planning, progress and the index need."""

    folder: StageFolder
    fingerprint: Fingerprint
    config: Mapping[str, Any]
    """The resolved config, written beside the output for people."""
    num_shards: int
    num_records: int
    """Over all shards; the last shard may be shorter than the others."""
    why_so_many: str = ""
    """What explains that number to a person, where it is not what the config asks for."""
    unit: str
    """What a record is called in progress bars, for instance "captions"."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Facts that readers of the index need, for instance images_per_caption."""


@dataclass(frozen=True, kw_only=True)
class Stage(StageOutput):
    """A stage whose shards are made independently of each other."""

    producer: Producer


class StageKind(NamedTuple):
    """What the shards of a stage are."""

    name: str
    """Of their files."""
    suffix: str
    """Of their files."""
    unit: str
    """What a record is called."""


STAGES = {
    "backgrounds": StageKind("backgrounds", ".parquet", "concepts"),
    "captions-raw": StageKind("captions", ".parquet", "captions"),
    "captions": StageKind("captions", ".parquet", "captions"),
    "images": StageKind("images", ".tar", "image sets"),
}
"""Folders of the batch stages of a run, in their order."""


def stage_folder(run: str, name: str) -> StageFolder:
    """The folder of a batch stage of a run."""
    return StageFolder(storage.join(run, name), STAGES[name].name, STAGES[name].suffix)


def write_plan(output: StageOutput) -> None:
    """Write `plan.json`: how much the stage is to make. A stage that grows writes it again."""
    plan = {
        "name": output.folder.name,
        "suffix": output.folder.suffix,
        "num_shards": output.num_shards,
        "num_records": output.num_records,
        "unit": output.unit,
        "metadata": dict(output.metadata),
    }
    data = json.dumps(plan, indent=1, sort_keys=True).encode("utf-8")
    storage.update_bytes(data, output.folder.plan_url)


def read_output(url: str) -> StageOutput | None:
    """The stage output in a folder, by its `run.yaml` and `plan.json`; None if there is none.

    Raises:
        DamagedFileError: One of the two does not hold what a stage writes there.
    """
    folder = StageFolder(url, "", "")
    try:
        plan_text = storage.read_bytes(folder.plan_url)
        run_text = storage.read_bytes(folder.run_yaml_url)
    except MissingFileError:
        return None
    try:
        plan: dict[str, Any] = json.loads(plan_text)
        run: dict[str, Any] = yaml.safe_load(run_text)
        return StageOutput(
            folder=StageFolder(url, plan.pop("name"), plan.pop("suffix")),
            fingerprint=Fingerprint(run["fields"]),
            config=run["config"],
            **plan,
        )
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DamagedFileError(
            f"{folder.run_yaml_url} or plan.json beside it is damaged "
            f"({type(error).__name__} {error}): expected what a stage writes there"
        ) from error


def find_outputs(run: str, stages: Iterable[str] = STAGES) -> Iterator[StageOutput]:
    """The stages of a run that were started, in their order, each followed by its retries."""
    for name in stages:
        url = storage.join(run, name)
        number = 0
        while (output := read_output(url)) is not None:
            yield output
            number += 1
            url = StageFolder(storage.join(run, name), "", "").retry(number).url
