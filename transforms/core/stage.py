"""A stage: what a job hands to the one transform that runs it, and what the job must provide."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from transforms.core.counters import Tally
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
