"""Stage without a model, for tests of runner, index and reports."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.captions import caption
from transforms.core.counters import Count, Tally
from transforms.core.fingerprint import Fingerprint
from transforms.core.records import Failure
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES, Produced, Stage

RECORDS_PER_SHARD = 6


@dataclass(frozen=True)
class CountingProducer:
    """Makes captions; every sixth record fails.

    Attributes:
        raise_in: Number of a shard that raises after its first record.
        setups: File to which `setup` adds a line for each call; "" for none.
    """

    raise_in: int = -1
    setups: str = ""

    def setup(self) -> None:
        if self.setups:
            with open(self.setups, "a") as file:
                file.write(f"{os.getpid()}\n")

    def record_ids(self, shard: int) -> list[str]:
        first = shard * RECORDS_PER_SHARD
        return [str(number) for number in range(first, first + RECORDS_PER_SHARD)]

    def produce(self, shard: int, tally: Tally) -> Iterator[Produced]:
        for record_id in self.record_ids(shard):
            if int(record_id) % RECORDS_PER_SHARD == 5:
                tally.count(Count.DROP_EMPTY)
                yield Failure(record_id, str(Count.DROP_EMPTY), "the sixth of its shard")
            else:
                yield caption(int(record_id))
            if shard == self.raise_in:
                raise ValueError("this shard cannot be made")


def stage(url: str, num_shards: int, **fields: Any) -> Stage:
    """Return the stage in folder `url`; `fields` are those of its producer."""
    return Stage(
        folder=StageFolder(url, STAGES["captions"]),
        fingerprint=Fingerprint({"kind": "counting"}),
        config={"num_shards": num_shards},
        num_shards=num_shards,
        num_records=num_shards * RECORDS_PER_SHARD,
        producer=CountingProducer(**fields),
    )
