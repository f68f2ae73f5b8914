"""ProduceShards: the one Beam transform that runs a shard stage, on every runner.

The unit of work, of retry and of commit is one shard, so nothing but shard numbers and counts ever
crosses a shuffle. That is why this is a DoFn over shards with the model loaded once per process
(`beam.utils.shared`), and not a `RunInference` over captions.
"""

import logging
import threading
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from transforms.core import shards, storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Tally
from transforms.core.stage import Producer, Stage

_LOGGER = logging.getLogger(__name__)


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
    """A producer whose model is loaded; one per process, used by one thread at a time.

    While one thread paints, another may publish: the lock covers the model only.
    """

    def __init__(self, producer: Producer) -> None:
        producer.setup()
        self.producer = producer
        self.lock = threading.Lock()


class _ProduceShard(beam.DoFn):
    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._shared = Shared()

    def _loaded(self) -> _LoadedProducer:
        # Loaded by the first shard that needs it: a worker that only adopts loads no model.
        loaded = self._shared.acquire(lambda: _LoadedProducer(self._stage.producer))
        self._keep = loaded
        return loaded

    def process(self, shard: int) -> Iterator[int]:
        folder, producer = self._stage.folder, self._stage.producer
        if storage.exists(folder.commit_url(shard)):
            yield shard
            return
        owed = producer.record_ids(shard)
        tally = Tally()
        with ShardBuild(folder, shard) as build:
            if not build.published_by_another(owed):
                loaded = self._loaded()
                with loaded.lock:
                    build.write(loaded.producer.produce(shard, tally))
            record = build.commit(owed, self._stage.fingerprint.digest, tally)
        for name, number in {**record.counts, "failures": record.num_failures}.items():
            Metrics.counter(folder.name, name).inc(number)
        _LOGGER.debug("committed %s", shards.encode_commit(record))
        yield shard
