"""A stage without a model, for tests of the machinery: each record is a caption or a failure.

Run as a process: `python -m tests.pipelines.counting URL NUM_SHARDS [CRASH_POINT SHARD]`. A crash
point kills the process with SIGKILL at that place of that shard, as a lost machine would.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.transforms.core.samples import caption
from transforms.core import storage
from transforms.core.counters import Count, Tally
from transforms.core.fingerprint import Fingerprint
from transforms.core.records import Failure
from transforms.core.shards import StageFolder
from transforms.core.stage import Produced, Stage

RECORDS_PER_SHARD = 6


@dataclass(frozen=True)
class CountingProducer:
    """Every sixth record fails; `setup` is counted in a file beside the output."""

    crash_in: int = -1
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
            if shard == self.crash_in:
                os.kill(os.getpid(), signal.SIGKILL)
            if shard == self.raise_in:
                raise ValueError("this shard cannot be made")


def stage(url: str, num_shards: int, **fields: Any) -> Stage:
    """The stage; further arguments go to the producer."""
    return Stage(
        folder=StageFolder(url, "captions", ".parquet"),
        fingerprint=Fingerprint({"kind": "counting"}),
        config={"num_shards": num_shards},
        num_shards=num_shards,
        num_records=num_shards * RECORDS_PER_SHARD,
        unit="captions",
        producer=CountingProducer(**fields),
    )


def _die_after(function: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        result = function(*arguments)
        if when(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def main() -> None:
    from pipelines.stage import run_stage

    url, num_shards, *crash = sys.argv[1:]
    point, shard = (crash[0], int(crash[1])) if crash else ("", -1)
    if point == "after_publish":
        storage.publish_file = _die_after(
            storage.publish_file, lambda _, target: f"captions-{shard:06d}.parquet" in target
        )
    elif point == "after_commit":
        storage.publish_bytes = _die_after(
            storage.publish_bytes, lambda _, target: f"captions-{shard:06d}.json" in target
        )
    elif point == "before_success":
        storage.replace_bytes = _die_after(
            storage.replace_bytes, lambda _, target: target.endswith("index.parquet")
        )
    run_stage(stage(url, int(num_shards), crash_in=shard if point == "producing" else -1), [])


if __name__ == "__main__":
    main()
