"""The stream of batches of one rank, which worker processes prepare.

The state of the stream is one integer, the step. If a worker dies (usually because the machine is
out of memory), new workers start at the first step whose batch has not arrived.
"""

import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from trainer.data import host_memory
from trainer.data.batch import Batch, CroppedSamples
from trainer.data.prefetch import Prefetcher
from trainer.data.sampler import RankSampler
from trainer.data.shard_reader import DEFAULT_CACHE_BYTES, DEFAULT_CACHE_FOLDER
from trainer.signals import block_stops
from transforms.core.config import Config, Place, no_fingerprint
from transforms.core.errors import DamagedFileError, StorageError
from transforms.core.exit_codes import UNFINISHED

log = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""How often workers are started again without a batch in between."""
ADVICE = (
    "if the machine is out of memory, or of shared memory (/dev/shm), lower loader.num_workers or "
    "loader.prefetch"
)
"""What a user should do, the last part of a sentence."""


class LoaderConfig(Config):
    """How shards are read: shuffling, worker processes and the cache of remote shards."""

    shuffle_shards: PositiveInt = 100
    """Shards are shuffled, then samples within each window of this many shards."""
    num_workers: NonNegativeInt = no_fingerprint(2)
    """Processes per rank that decode and crop; 0 does it in the training process."""
    prefetch: PositiveInt = no_fingerprint(2)
    """Batches that each worker prepares ahead."""
    cache_folder: Place = no_fingerprint(DEFAULT_CACHE_FOLDER)
    """Folder for copies of remote shards; local shards are read in place."""
    cache_gib: PositiveFloat = no_fingerprint(DEFAULT_CACHE_BYTES / (1 << 30))
    """Bound of `cache_folder` in GiB, for all ranks of a machine. The shards of one window and of
    the batches that workers prepare ahead should fit."""


class LostWorkerError(RuntimeError):
    """Worker processes died repeatedly; the message is one sentence for the user."""


@dataclass(frozen=True)
class _Failure:
    """What a worker returns instead of a batch when the data cannot be read."""

    message: str


class _RankBatches(Dataset[Any]):
    """The batches of one rank, by step."""

    def __init__(self, samples: CroppedSamples, rank_sampler: RankSampler) -> None:
        self._samples = samples
        self._rank_sampler = rank_sampler

    def __getitem__(self, step: int) -> Batch | _Failure:
        try:
            return self._samples.batch(self._rank_sampler(step))
        except (StorageError, DamagedFileError) as error:
            return _Failure(str(error))
        except (MemoryError, RuntimeError, OSError) as error:
            if not host_memory.is_memory_error(error):
                raise
            return _Failure(f"cannot load the samples of step {step}: {host_memory.ADVICE}")


def batches(
    samples: CroppedSamples,
    config: LoaderConfig,
    *,
    first_step: int,
    last_step: int,
    captions_per_batch: int,
    rank: int = 0,
    ranks: int = 1,
    ranks_here: int = 1,
) -> Generator[Batch, None, None]:
    """Yield one rank's batches of steps `first_step` to `last_step` - 1.

    Close the generator if you do not exhaust it. Its worker processes block signals, so a process
    that ends with an error would otherwise wait for them forever.

    Args:
        samples: The samples to read.
        config: How shards are read.
        first_step: First step.
        last_step: Step after the last one.
        captions_per_batch: Captions per step over all ranks.
        rank: Number of this rank.
        ranks: Number of ranks.
        ranks_here: Number of ranks that share this machine's cache of shards.

    Raises:
        StorageError: A shard cannot be read.
        LostWorkerError: Workers died repeatedly.
    """
    rank_sampler = RankSampler(samples.sampler, captions_per_batch, rank, ranks)
    dataset = _RankBatches(samples, rank_sampler)
    # The clients of object stores do not survive a fork.
    context = "spawn" if samples.reader.is_remote else "fork"
    step, restarts = first_step, 0
    with Prefetcher(
        samples.reader,
        rank_sampler,
        range(first_step, last_step),
        num_workers=config.num_workers,
        batches_per_worker=config.prefetch,
        ranks_here=ranks_here,
    ) as prefetcher:
        while step < last_step:
            prefetcher.advance_to(step)
            try:
                for batch in _load(dataset, range(step, last_step), config, context):
                    step, restarts = step + 1, 0
                    prefetcher.advance_to(step)
                    yield batch
            except LostWorkerError as error:
                restarts += 1
                if restarts > MAX_RESTARTS:
                    raise
                log.warning("%s; starting new processes at step %d", error, step)
                context = "spawn"  # By now, other threads of this process may hold locks.


def _load(
    dataset: _RankBatches, steps: range, config: LoaderConfig, context: str
) -> Iterator[Batch]:
    """Yield the batches of some steps from new workers.

    Raises:
        StorageError: A shard cannot be read.
        LostWorkerError: A worker died.
    """
    workers = config.num_workers
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=config.prefetch if workers else None,
        multiprocessing_context=context if workers else None,
        worker_init_fn=_end_when_a_batch_is_lost if workers else None,
    )
    if workers:
        # Torch's handler for dead workers would raise in the middle of a step; waiting for a batch
        # notices them as well. Torch sets it once per process: let it do so now, then remove it.
        signal_handling._set_SIGCHLD_handler()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    others = set(multiprocessing.active_children())
    with block_stops():
        iterator = _start(loader)
    processes = set(multiprocessing.active_children()) - others
    try:
        while (batch := _next(iterator, processes)) is not None:
            yield batch
    finally:
        try:
            if workers:
                iterator._shutdown_workers()
        finally:
            for process in processes:
                process.kill()  # Torch ends stuck workers with SIGTERM, which these block.


def _start(loader: DataLoader[Any]) -> Any:
    """Return an iterator over new workers.

    Raises:
        StorageError: The system refuses processes or shared memory.
    """
    try:
        return iter(loader)
    except OSError as error:
        # The half-made iterator prints a traceback when it is freed: now, not after the last line.
        traceback.clear_frames(error.__traceback__)
        raise StorageError(
            error.errno, f"cannot start data loading processes: {error.strerror}; {ADVICE}"
        ) from error


def _end_when_a_batch_is_lost(_: int) -> None:
    """Make a worker end if it cannot send a batch, for instance because /dev/shm is full.

    The queue would drop the batch, and the training would wait for it forever.
    """
    setattr(Queue, "_on_queue_feeder_error", staticmethod(_end))  # noqa: B010


def _end(error: Exception, _: object) -> None:
    try:
        print(f"cannot send a batch to the training: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(UNFINISHED)


def _next(iterator: Iterator[Any], processes: Iterable[BaseProcess]) -> Batch | None:
    """Return the next batch, None after the last one; raises the errors of `_load`."""
    try:
        batch: Batch | _Failure | None = next(iterator, None)
    except RuntimeError as error:
        dead = [process for process in processes if not process.is_alive()]
        if not dead:
            raise
        raise _lost_worker(dead[0].exitcode) from error
    if isinstance(batch, _Failure):
        raise StorageError(None, batch.message)
    return batch


def _lost_worker(exit_code: int | None) -> LostWorkerError:
    cause = f"exit code {exit_code}"
    if exit_code is not None and exit_code < 0:
        cause = signal.Signals(-exit_code).name
    return LostWorkerError(f"a data loading process died ({cause}); {ADVICE}")
