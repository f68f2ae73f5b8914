"""The stream of batches: worker processes prepare a rank's batch of each step.

The state of the stream is one integer, the step. A worker that dies (mostly for want of memory) is
no loss: new workers begin at the first step that has not arrived.
"""

import logging
import multiprocessing
import signal
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from trainer.data.batch import Batch, CroppedSamples
from trainer.data.prefetch import Prefetcher
from trainer.data.sampler import RankSampler
from trainer.data.shard_reader import DEFAULT_CACHE_BYTES, DEFAULT_CACHE_FOLDER
from trainer.signals import held
from transforms.core.config import Config, no_fingerprint
from transforms.core.errors import DamagedFileError, StorageError

log = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Of the workers, in a row without a batch in between."""


class LoaderConfig(Config):
    """How shards become batches: their order, the processes that read them, local copies."""

    shuffle_shards: PositiveInt = 100
    """Shards are shuffled, then samples within each window of this many shards."""
    num_workers: NonNegativeInt = no_fingerprint(2)
    """Processes per rank that decode and crop; 0 does it in the training process."""
    prefetch: PositiveInt = no_fingerprint(2)
    """Batches that each worker prepares ahead."""
    cache_folder: str = no_fingerprint(DEFAULT_CACHE_FOLDER)
    """Folder for copies of remote shards; local shards are read in place."""
    cache_gib: PositiveFloat = no_fingerprint(DEFAULT_CACHE_BYTES / (1 << 30))
    """Bound of `cache_folder` in GiB, for all ranks of a machine. The shards of one window and of
    the batches that workers prepare ahead should fit."""


class LostWorkerError(RuntimeError):
    """Worker processes die again and again; the message is a sentence."""


@dataclass(frozen=True)
class _Failed:
    """Passed on by a worker in place of a batch: a sentence to stop the training with."""

    sentence: str


class _Steps(Dataset[Any]):
    """A rank's batch of each step."""

    def __init__(self, samples: CroppedSamples, rank_sampler: RankSampler) -> None:
        self._samples = samples
        self._rank_sampler = rank_sampler

    def __getitem__(self, step: int) -> Batch | _Failed:
        try:
            return self._samples.batch(self._rank_sampler(step))
        except (StorageError, DamagedFileError) as error:
            return _Failed(str(error))


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
    """A rank's batches of steps `first_step` to `last_step` - 1.

    Whoever does not take them all must close it: its processes hear no signal, so that a process
    that ends with an error would wait for them for ever.

    Args:
        samples: Of the data.
        config: How they are read.
        first_step: Where to begin.
        last_step: Where to end.
        captions_per_batch: Over all ranks.
        rank: Whose batches.
        ranks: How many there are.
        ranks_here: How many of them share this machine's cache of shards.

    Raises:
        StorageError: A shard cannot be read.
        LostWorkerError: Workers die again and again.
    """
    rank_sampler = RankSampler(samples.sampler, captions_per_batch, rank, ranks)
    steps = _Steps(samples, rank_sampler)
    # A process that has spoken to a server must not be forked.
    context = "spawn" if samples.reader.is_remote else "fork"
    step, restarts = first_step, 0
    with Prefetcher(
        samples.reader,
        rank_sampler,
        range(first_step, last_step),
        num_workers=config.num_workers,
        batches_per_worker=config.prefetch,
        ranks_here=ranks_here,
    ) as ahead:
        while step < last_step:
            ahead.reach(step)
            try:
                for batch in _load(steps, config, range(step, last_step), context):
                    step, restarts = step + 1, 0
                    ahead.reach(step)
                    yield batch
            except LostWorkerError as error:
                restarts += 1
                if restarts > MAX_RESTARTS:
                    raise
                log.warning("%s; starting them again at step %d", error, step)
                context = "spawn"  # By now threads of the training may hold locks.


def _load(steps: _Steps, config: LoaderConfig, which: range, context: str) -> Iterator[Batch]:
    """The batches of some steps.

    Raises:
        StorageError: A shard cannot be read.
        LostWorkerError: A worker died.
    """
    workers = config.num_workers
    loader: DataLoader[Any] = DataLoader(
        steps,
        batch_size=None,
        sampler=which,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=config.prefetch if workers else None,
        multiprocessing_context=context if workers else None,
    )
    if workers:
        # Torch's handler raises in the middle of a step; waiting for a batch notices as well. It is
        # set once, with the first workers of a process: before they are there, and then taken off.
        signal_handling._set_SIGCHLD_handler()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    others = set(multiprocessing.active_children())
    with held():
        iterator: Any = iter(loader)
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
                process.kill()  # Where one is stuck, torch relies on a signal that is held back.


def _next(iterator: Iterator[Any], processes: Iterable[BaseProcess]) -> Batch | None:
    """The next batch, None after the last; errors as of `_load`."""
    try:
        batch: Batch | _Failed | None = next(iterator, None)
    except RuntimeError as error:
        dead = [process for process in processes if not process.is_alive()]
        if not dead:
            raise
        raise _lost(dead[0].exitcode) from error
    if isinstance(batch, _Failed):
        raise StorageError(None, batch.sentence)
    return batch


def _lost(exit_code: int | None) -> LostWorkerError:
    how = f"exit code {exit_code}"
    if exit_code is not None and exit_code < 0:
        how = signal.Signals(-exit_code).name
    return LostWorkerError(
        f"a process that loads data died ({how}); if the machine is out of memory, or of shared "
        "memory (/dev/shm), lower loader.num_workers or loader.prefetch"
    )
