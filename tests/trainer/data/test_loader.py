"""Worker processes: dead ones are replaced without loss, and none is left running."""

import contextlib
import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch.utils.data._utils import signal_handling

from tests.support.batches import cropped, read, same
from tests.support.image_shards import write_images
from tests.support.paths import ROOT
from tests.support.training_runs import make_run
from trainer.data import loader
from trainer.data.batch import Batch, CroppedSamples
from trainer.data.loader import LoaderConfig, LostWorkerError, _RankBatches, batches
from trainer.data.sampler import BatchIndices
from trainer.signals import STOP_SIGNALS
from transforms.core.errors import StorageError


def kill_workers() -> None:
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGKILL)


def test_workers_that_are_killed_are_started_again_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    signal_handling._set_SIGCHLD_handler()  # As an earlier loader of this process may have done.
    write_images(tmp_path)
    expected = read(tmp_path, 0, 8)
    stream = batches(
        cropped(tmp_path),
        LoaderConfig(num_workers=1, prefetch=1),
        first_step=0,
        last_step=8,
        captions_per_batch=4,
    )
    got: list[Batch] = []
    for batch in stream:
        got.append(batch)
        if len(got) == 3:
            kill_workers()
            time.sleep(0.5)  # Torch's own handler would raise here, within a step.
    assert all(same(a, b) for a, b in zip(got, expected, strict=True))
    assert "died (SIGKILL); if the machine is out of memory, " in caplog.text


def test_stop_signals_do_not_reach_workers_and_one_that_is_stuck_leaves_with_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    write_images(tmp_path)
    whole = cropped(tmp_path)
    stream = batches(
        _Stuck(whole.reader, whole.sampler, whole.spec, whole.seed),
        LoaderConfig(num_workers=1, prefetch=1),
        first_step=0,
        last_step=8,
        captions_per_batch=4,
    )
    next(stream)
    (worker,) = multiprocessing.active_children()
    for number in STOP_SIGNALS:
        os.kill(worker.pid or 0, number)
    next(stream)
    time.sleep(0.5)  # The worker is now stuck in the next batch.
    del stream
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL
    assert caplog.text == ""


class _Stuck(CroppedSamples):
    def batch(self, indices: BatchIndices) -> Batch:
        if indices.positions.min() >= 2 * 4:
            time.sleep(600)
        return super().batch(indices)


class _Deadly(CroppedSamples):
    def batch(self, indices: object) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_workers_that_always_die_end_the_stream_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "MAX_RESTARTS", 0)
    write_images(tmp_path)
    whole = cropped(tmp_path)
    stream = batches(
        _Deadly(whole.reader, whole.sampler, whole.spec, whole.seed),
        LoaderConfig(num_workers=1),
        first_step=0,
        last_step=2,
        captions_per_batch=4,
    )
    with pytest.raises(LostWorkerError, match=r"died \(SIGKILL\)"):
        next(stream)


class _TooLarge(CroppedSamples):
    def batch(self, indices: BatchIndices) -> Batch:
        found = super().batch(indices)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # Also for shared memory.
        return found


@pytest.fixture
def _a_minute() -> Iterator[None]:
    """End a test that hangs."""

    def expire(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("_a_minute")
def test_a_batch_that_does_not_fit_into_shared_memory_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "MAX_RESTARTS", 0)
    write_images(tmp_path)
    whole = cropped(tmp_path)
    stream = batches(
        _TooLarge(whole.reader, whole.sampler, whole.spec, whole.seed),
        LoaderConfig(num_workers=1),
        first_step=0,
        last_step=2,
        captions_per_batch=4,
    )
    with pytest.raises(LostWorkerError, match=r"died \(exit code 1\); if .* of shared memory"):
        next(stream)
    assert "cannot send a batch to the training: unable to " in capfd.readouterr().err


def test_processes_that_cannot_be_started_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    unfinished = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    monkeypatch.delattr(unfinished, "__del__")  # It prints a traceback of its own.
    monkeypatch.setattr(BaseContext, "Event", full)
    write_images(tmp_path)
    with pytest.raises(StorageError, match="data loading processes: No space left on device; if"):
        read(tmp_path, 0, 1, workers=1)


def test_deaths_with_batches_in_between_never_end_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training of weeks may lose many workers."""
    write_images(tmp_path)
    expected = read(tmp_path, 0, 8)
    started: list[str] = []

    def die_after_one(
        of_step: _RankBatches, steps: range, _: LoaderConfig, context: str
    ) -> Iterator[Any]:
        started.append(context)
        yield of_step[steps.start]
        raise LostWorkerError("a data loading process died")

    monkeypatch.setattr(loader, "_load", die_after_one)
    assert all(same(a, b) for a, b in zip(read(tmp_path, 0, 8), expected, strict=True))
    assert started == ["fork", *["spawn"] * 7], "later, other threads may hold locks"
    started.clear()
    monkeypatch.setattr(loader, "Prefetcher", MagicMock())
    samples = cropped(tmp_path, cache=tmp_path / "cache")
    samples.reader.is_remote = True
    steps = {"first_step": 0, "last_step": 1, "captions_per_batch": 4}
    assert same(next(batches(samples, LoaderConfig(), **steps)), expected[0])
    assert started == ["spawn"], "clients of object stores do not survive a fork"


BROKEN = """
import sys
from trainer import train
from trainer.training.step import Training

def update(self, batch):
    raise RuntimeError("a bug")

Training.update = update
sys.exit(train.main(sys.argv[1:]))
"""


def test_an_error_that_nobody_expects_ends_the_training_and_its_workers(tmp_path: Path) -> None:
    config = str(make_run(tmp_path / "run") / "train.yaml")
    process = subprocess.Popen(
        [sys.executable, "-c", BROKEN, config, "loader.num_workers=1"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        errors = process.communicate(timeout=60)[1]  # Ends when no child has the pipe open.
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "RuntimeError: a bug"
