"""One shard is published while the next one is made, and no finished work is lost."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import apache_beam as beam
import pytest

from pipelines.options import beam_options
from tests.support.counting_stage import CountingProducer, stage
from transforms.core.counters import Tally
from transforms.core.shards import committed_shards
from transforms.core.stages import Produced, Stage
from transforms.produce import ProduceShards

BEGUN = threading.Semaphore(0)
"""Counts the shards that were begun; a global of the module, since a producer is pickled."""


@dataclass(frozen=True)
class Overlapping(CountingProducer):
    """A producer whose records are delivered once the next shard is begun."""

    num_shards: int = 0
    fail_at: int = -1

    def produce(self, shard: int, tally: Tally) -> Iterator[Produced]:
        BEGUN.release()
        _BEGINNINGS.append(shard)
        if len(_BEGINNINGS) - 1 == self.fail_at:
            raise ValueError("this shard cannot be made")
        last = len(_BEGINNINGS) == self.num_shards
        return self._records(shard, tally, last)

    def _records(self, shard: int, tally: Tally, last: bool) -> Iterator[Produced]:
        BEGUN.acquire()  # Take the permit of this shard, to wait for that of the next one.
        if not last:
            assert BEGUN.acquire(timeout=30), "publishing must not delay the next shard"
            BEGUN.release()
        yield from super().produce(shard, tally)


_BEGINNINGS: list[int] = []


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.BEGUN", threading.Semaphore(0))
    monkeypatch.setattr(f"{__name__}._BEGINNINGS", [])


def produce(made: Stage) -> None:
    """Run the shards of a stage on the default runner."""
    pipeline = beam.Pipeline(options=beam_options([]))
    pipeline | beam.Create(list(range(made.num_shards))) | ProduceShards(made)
    pipeline.run().wait_until_finish()


def overlapping(url: Path, num_shards: int, fail_at: int = -1) -> Stage:
    producer = Overlapping(num_shards=num_shards, fail_at=fail_at)
    return replace(stage(str(url), num_shards), producer=producer)


def test_a_shard_is_published_while_the_next_one_is_made(tmp_path: Path) -> None:
    made = overlapping(tmp_path, 4)
    produce(made)
    assert committed_shards(made.folder) == {0, 1, 2, 3}


def test_a_shard_that_cannot_be_made_does_not_lose_the_one_before(tmp_path: Path) -> None:
    made = overlapping(tmp_path, 4, fail_at=2)
    with pytest.raises(Exception, match="this shard cannot be made"):
        produce(made)
    assert committed_shards(made.folder) == set(_BEGINNINGS[:2])


@pytest.mark.parametrize("shard", range(3))
def test_an_error_of_the_publisher_fails_the_run(tmp_path: Path, shard: int) -> None:
    # The counting producer raises while its records are iterated over, in the publisher.
    made = stage(str(tmp_path), 3, raise_in=shard)
    with pytest.raises(Exception, match="this shard cannot be made"):
        produce(made)
    assert shard not in committed_shards(made.folder)
