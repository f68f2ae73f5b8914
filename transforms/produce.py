"""ProduceShards: the one Beam transform that runs a shard stage, on every runner.

The unit of work, of retry and of commit is one shard, so nothing but shard numbers and counts ever
crosses a shuffle. That is why this is a DoFn over shards with the model loaded once per process
(`beam.utils.shared`), and not a `RunInference` over captions.

A shard is written, published and committed by a second thread while the model makes the next one.
That cannot be left to the runner: the direct runner, like many others, hands all shards to one
thread, one after the other. A bundle ends when all its shards are committed, so one that is tried
again finds at most two to repeat: the one that was being made and the one that was being published.
"""

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from transforms.core import shards, storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Tally
from transforms.core.shards import CommitRecord
from transforms.core.stages import Produced, Producer, Stage

log = logging.getLogger(__name__)


class ProduceShards(beam.PTransform):
    """Shard numbers -> numbers of committed shards.

    Each shard that is not committed yet is made and committed; one that another worker commits
    meanwhile is adopted. Everything a person wants to know of a shard is in its commit record.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def expand(self, shard_numbers: beam.PCollection[int]) -> beam.PCollection[int]:
        """Spread the shards over the workers and make them."""
        return (
            shard_numbers
            | "Spread" >> beam.Reshuffle()
            | "Produce" >> beam.ParDo(_ProduceShard(self._stage)).with_output_types(int)
        )


class _LoadedProducer:
    """A producer whose model is loaded; one per process, used by one thread at a time."""

    def __init__(self, producer: Producer) -> None:
        producer.setup()
        self.producer = producer
        self.lock = threading.Lock()


class _ProduceShard(beam.DoFn):
    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._shared = Shared()

    def setup(self) -> None:
        self._publisher = ThreadPoolExecutor(1, "publish")
        self._publishing: Future[CommitRecord] | None = None

    def teardown(self) -> None:
        self._publisher.shutdown()

    def process(self, shard: int) -> Iterator[int]:
        folder = self._stage.folder
        if storage.exists(folder.commit_url(shard)):
            yield shard
            return
        owed = self._stage.producer.record_ids(shard)
        tally = Tally()
        with contextlib.ExitStack() as scratch:
            build = scratch.enter_context(ShardBuild(folder, shard))
            try:
                produced = None if build.published_by_another(owed) else self._make(shard, tally)
            finally:
                # Also when this shard cannot be made: the one before it shall not be lost.
                committed = self._committed()
            digest = self._stage.fingerprint.digest
            self._publishing = self._publisher.submit(
                _publish, scratch.pop_all(), build, produced, owed, digest, tally
            )
        yield from committed

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for shard in self._committed():
            yield GlobalWindows.windowed_value(shard)

    def _make(self, shard: int, tally: Tally) -> Iterable[Produced]:
        # Loaded by the first shard that needs it: a worker that only adopts loads no model.
        loaded: _LoadedProducer = self._shared.acquire(
            lambda: _LoadedProducer(self._stage.producer)
        )
        self._keep = loaded
        with loaded.lock:
            return loaded.producer.produce(shard, tally)

    def _committed(self) -> list[int]:
        """The shard that was being published, if any, once it is committed; raises its error."""
        publishing, self._publishing = self._publishing, None
        if publishing is None:
            return []
        record = publishing.result()
        for name, number in {**record.counts, "failures": record.num_failures}.items():
            Metrics.counter(self._stage.folder.name, name).inc(number)
        log.debug("committed %s", shards.encode_commit(record))
        return [record.shard]


def _publish(
    scratch: contextlib.ExitStack,
    build: ShardBuild,
    produced: Iterable[Produced] | None,
    owed: Sequence[str],
    fingerprint: str,
    tally: Tally,
) -> CommitRecord:
    with scratch:
        if produced is not None:
            build.write(produced)
        return build.commit(owed, fingerprint, tally)
