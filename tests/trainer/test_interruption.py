"""Trainings that are stopped or killed continue exactly."""

import errno
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.evaluation import save_pictures
from tests.support.gradients import tiny_config
from tests.support.training_runs import (
    assert_bitwise_equal,
    checkpoints,
    command,
    final_state,
    flat,
    losses,
    make_run,
    start,
    wait_for_checkpoint,
    write_config,
)
from trainer.checkpoints import resume
from trainer.checkpoints.files import list_checkpoints, newest_checkpoint
from trainer.checkpoints.writer import CheckpointWriter
from trainer.monitor.online_knn import OnlineKNN
from trainer.training.step import Training
from transforms.core import storage
from transforms.core.exit_codes import RESTART


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_and_the_same_command_continues_bit_for_bit(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    other = tmp_path / "other"
    write_config(other, data={"images": str(run / "images")})
    assert command(other, "loader.num_workers=1") == 0

    update = Training.update

    def interrupted(self: Training, batch: Any) -> None:
        if self.step == 1:
            os.kill(os.getpid(), getattr(signal, name))
        update(self, batch)

    monkeypatch.setattr(Training, "update", interrupted)
    assert command(run) == RESTART
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"stopped by {name}, saved at step 2 of 4; run the same command to continue" in said
    monkeypatch.undo()
    assert list(list_checkpoints(checkpoints(run))) == [2]
    assert command(run) == 0
    assert_bitwise_equal(run, other)
    assert losses(run) == losses(other)


def test_a_signal_in_the_last_step_changes_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Training.update

    def interrupted(self: Training, batch: Any) -> None:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, batch)

    monkeypatch.setattr(Training, "update", interrupted)
    assert command(run) == 0
    assert list(list_checkpoints(checkpoints(run))) == [4]


def test_a_stop_skips_online_knn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online kNN takes a while, and time is short after a signal."""
    pictures = save_pictures(tmp_path / "colours", {"train": 4, "test": 4})
    looks, update = [], Training.update

    def interrupted(self: Training, batch: Any) -> None:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, batch)

    def look(*_: object) -> float:
        looks.append(1)
        return 50.0

    monkeypatch.setattr(Training, "update", interrupted)
    monkeypatch.setattr(OnlineKNN, "accuracy", look)
    watch = ["steps=5", "monitor.knn_every=2", f"monitor.knn_dataset=folder:{pictures}"]
    assert command(run, *watch) == RESTART
    assert len(looks) == 1, "only after the second step, not after the fourth"
    assert list(list_checkpoints(checkpoints(run))) == [4]


def test_a_continued_training_takes_over_nothing_of_the_mapped_file(run: Path) -> None:
    assert command(run) == 0
    training = Training(tiny_config(run), torch.device("cpu"))
    with resume.newest_on_all_ranks(checkpoints(run)) as found:
        assert found is not None
        training.restore(found.state)
    expected = final_state(run)
    for value in flat(found.state).values():
        if isinstance(value, torch.Tensor):
            value.fill_(1000)
    for name, value in flat(training.state()).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, flat(expected)[name]), name


def test_a_stop_while_a_checkpoint_is_written_finishes_that_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Time is short after a signal: another checkpoint would take twice as long."""
    update, replace_bytes, waits = Training.update, storage.replace_bytes, threading.Event()
    wait = CheckpointWriter.wait

    def waited(self: CheckpointWriter) -> str:
        waits.set()
        return wait(self)

    def interrupted(self: Training, batch: Any) -> None:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            monkeypatch.setattr(CheckpointWriter, "wait", waited)
        update(self, batch)

    def slow(data: bytes, url: str) -> None:
        if url.endswith("step-000000002.pt"):
            assert waits.wait(30), "the signal is noticed while this is written"
        replace_bytes(data, url)

    monkeypatch.setattr(Training, "update", interrupted)
    monkeypatch.setattr(storage, "replace_bytes", slow)
    assert command(run, "checkpoint.every_steps=2") == RESTART
    assert "stopped by SIGTERM, saved at step 2 of 4" in capsys.readouterr().err
    assert list(list_checkpoints(checkpoints(run))) == [2]
    monkeypatch.undo()
    other = tmp_path / "other"
    write_config(other, data={"images": str(run / "images")})
    assert command(other) == command(run) == 0
    assert_bitwise_equal(run, other)
    assert losses(run) == losses(other)


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_killed_at_any_moment_it_continues_bit_for_bit(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_config(other, data={"images": str(run / "images")})
    # Sums in another order have other bits, so both trainings use one thread.
    settings = ["steps=40", "optim.warmup=5", "checkpoint.every_s=0", "num_threads=1"]
    assert command(other, *settings, "checkpoint.every_s=600") == 0
    for target in (5, 20):
        process = start(run, *settings)
        wait_for_checkpoint(process, run, target)
        process.kill()
        process.communicate()
        assert max(list_checkpoints(checkpoints(run))) < 40, "killed in the middle"
    process = start(run, *settings)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "Trained 40 steps" in output
    assert_bitwise_equal(run, other, 40)
    assert losses(run) == losses(other)
    assert [step for step, _ in losses(run)] == list(range(40))


def test_a_full_disk_at_checkpoint_time_is_one_sentence_and_keeps_the_last(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_bytes = storage.replace_bytes

    def full(data: bytes, url: str) -> None:
        if url.endswith("step-000000003.pt"):
            with storage.accessing("write", url):
                raise OSError(errno.ENOSPC, "No space left on device")
        replace_bytes(data, url)

    monkeypatch.setattr(storage, "replace_bytes", full)
    assert command(run, "checkpoint.every_steps=1") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "step-000000003.pt: the disk is full" in said
    monkeypatch.undo()
    with newest_checkpoint(checkpoints(run)) as newest:
        assert newest is not None
        assert newest.state["step"] == 2
    assert command(run) == 0
