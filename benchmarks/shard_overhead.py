"""Overhead of Beam and commits per shard: a thousand shards of a stage without a model.

    python -m benchmarks.shard_overhead [--shards 1000] [--records 250] [--repeats 3]

The alternative is a plain loop that only writes the same Parquet files: no Beam, no commit record,
no checksum, no sync to disk. Both take turns; the difference is the cost of safety.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.runner import plan, run_stage
from transforms.core.counters import Tally
from transforms.core.fingerprint import Fingerprint
from transforms.core.parquet_shards import CAPTION_SHARDS
from transforms.core.records import Caption
from transforms.core.seeding import caption_id
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES, Produced, Stage


def caption(number: int) -> Caption:
    text = f"a picture of thing {number}"
    return Caption(caption_id(text), text, number, "thing", "benchmark", "c", None, None)


@dataclass(frozen=True)
class Trivial:
    """A producer of captions that cost no time."""

    records: int

    def setup(self) -> None:
        """Load no model."""

    def record_ids(self, shard: int) -> list[str]:
        """Return the numbers of a shard's captions."""
        return [str(shard * self.records + i) for i in range(self.records)]

    def produce(self, shard: int, tally: Tally) -> Iterator[Produced]:
        """Yield the captions of a shard."""
        return (caption(int(number)) for number in self.record_ids(shard))


def stage(url: str, shards: int, records: int) -> Stage:
    return Stage(
        folder=StageFolder(url, STAGES["captions"]),
        fingerprint=Fingerprint({"benchmark": 1}),
        config={},
        num_shards=shards,
        num_records=shards * records,
        producer=Trivial(records),
    )


def timed_stage(shards: int, records: int) -> tuple[float, float]:
    """Return the seconds of the whole stage, and of planning it again when it is complete."""
    with tempfile.TemporaryDirectory() as folder:
        made = stage(folder, shards, records)
        started = time.perf_counter()
        run_stage(made, [])
        whole = time.perf_counter() - started
        started = time.perf_counter()
        assert plan(made) == []
        return whole, time.perf_counter() - started


def timed_loop(shards: int, records: int) -> float:
    producer = Trivial(records)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for shard in range(shards):
            CAPTION_SHARDS.write(f"{folder}/{shard:06d}.parquet", producer.produce(shard, Tally()))
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--records", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    timed_stage(10, arguments.records)  # Imports Beam.
    loops, stages, plans = [], [], []
    for _ in range(arguments.repeats):
        loops.append(timed_loop(arguments.shards, arguments.records))
        whole, planning = timed_stage(arguments.shards, arguments.records)
        stages.append(whole)
        plans.append(planning)
    per_shard = [1000 * statistics.median(times) / arguments.shards for times in (stages, loops)]
    print(
        f"{arguments.shards} shards of {arguments.records} captions, medians of {arguments.repeats}"
    )
    print(f"  stage on Beam    {per_shard[0]:7.2f} ms per shard")
    print(f"  plain loop       {per_shard[1]:7.2f} ms per shard")
    print(f"  difference       {per_shard[0] - per_shard[1]:7.2f} ms per shard")
    print(f"  planning again   {1000 * statistics.median(plans):7.1f} ms for all")


if __name__ == "__main__":
    main()
