"""ProduceShards: the one Beam transform that runs a stage of shards, on every runner.

The unit of work, of retry and of commit is one shard, so only shard numbers ever cross a shuffle.
That is why this is a DoFn over shards with the model loaded once per process
(`beam.utils.shared`), and not a `RunInference` over captions.

A second thread writes, publishes and commits a shard while the model makes the next one. The runner
does not do this for us: the direct runner, like many others, gives all shards to one thread, one
after the other. A bundle ends when all its shards are committed, so a retried bundle repeats at
most two shards: the one that was being made and the one that was being published.
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

    A shard that is not committed yet is made and committed; one that another worker commits
    meanwhile is adopted. All facts about a shard are in its commit record.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def expand(self, shard_numbers: beam.PCollection[int]) -> beam.PCollection[int]:
        """Distribute the shards over the workers and make them."""
        return (
            shard_numbers
            | "Spread" >> beam.Reshuffle()
            | "Produce" >> beam.ParDo(_ProduceShard(self._stage)).with_output_types(int)
        )


class _LoadedProducer:
    """A producer with its model loaded: one per process, used by one thread at a time."""

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
        expected_ids = self._stage.producer.record_ids(shard)
        tally = Tally()
        with contextlib.ExitStack() as scratch:
            build = scratch.enter_context(ShardBuild(folder, shard, self._stage.metadata))
            try:
                adopted = build.published_by_another(expected_ids)
                produced = None if adopted else self._make(shard, tally)
            finally:
                # Even if this shard cannot be made, the one before it must not be lost.
                committed = self._committed()
            digest = self._stage.fingerprint.digest
            self._publishing = self._publisher.submit(
                _publish, scratch.pop_all(), build, produced, expected_ids, digest, tally
            )
        yield from committed

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for shard in self._committed():
            yield GlobalWindows.windowed_value(shard)

    def _make(self, shard: int, tally: Tally) -> Iterable[Produced]:
        # Only now: a worker that only adopts shards loads no model.
        loaded: _LoadedProducer = self._shared.acquire(
            lambda: _LoadedProducer(self._stage.producer)
        )
        self._keep = loaded
        with loaded.lock:
            return loaded.producer.produce(shard, tally)

    def _committed(self) -> list[int]:
        """Wait for the shard that is being published, if any; raise its error."""
        publishing, self._publishing = self._publishing, None
        if publishing is None:
            return []
        record = publishing.result()
        for name, number in {**record.counts, "failures": record.num_failures}.items():
            Metrics.counter(self._stage.folder.kind.file_prefix, name).inc(number)
        log.debug("committed %s", shards.encode_commit(record))
        return [record.shard]


def _publish(
    scratch: contextlib.ExitStack,
    build: ShardBuild,
    produced: Iterable[Produced] | None,
    expected_ids: Sequence[str],
    fingerprint: str,
    tally: Tally,
) -> CommitRecord:
    with scratch:
        if produced is not None:
            build.write(produced)
        return build.commit(expected_ids, fingerprint, tally)
