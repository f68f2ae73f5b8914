"""The processes that load data: one that dies is no loss, and none is missed in silence."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tests.trainer.making import write_images
from tests.trainer.test_stream import cropped, read, same
from trainer import loader
from trainer.data import LoaderConfig
from trainer.loader import LostWorkerError, batches
from trainer.order import Share
from trainer.signals import STOP_SIGNALS
from trainer.stream import Batch, CroppedSamples


def kill_workers() -> None:
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGKILL)


def test_workers_that_are_killed_are_started_again_where_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
            time.sleep(0.5)  # Torch's own handler would raise here, in the middle of a step.
    assert all(same(a, b) for a, b in zip(got, expected, strict=True))
    assert "died (SIGKILL); if the machine is out of memory, " in caplog.text


def test_stop_signals_do_not_reach_workers_and_one_that_is_stuck_leaves_with_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    write_images(tmp_path)
    whole = cropped(tmp_path)
    stream = batches(
        _Stuck(whole.reader, whole.order, whole.spec, whole.seed),
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
    time.sleep(0.5)  # Now it is at the next one.
    del stream
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL
    assert caplog.text == ""


class _Stuck(CroppedSamples):
    def batch(self, share: Share) -> Batch:
        if share.positions.min() >= 2 * 4:
            time.sleep(600)
        return super().batch(share)


class _Deadly(CroppedSamples):
    def batch(self, share: object) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_workers_that_always_die_end_the_stream_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "MAX_RESTARTS", 0)
    write_images(tmp_path)
    whole = cropped(tmp_path)
    stream = batches(
        _Deadly(whole.reader, whole.order, whole.spec, whole.seed),
        LoaderConfig(num_workers=1),
        first_step=0,
        last_step=2,
        captions_per_batch=4,
    )
    with pytest.raises(LostWorkerError, match=r"died \(SIGKILL\)"):
        next(stream)
