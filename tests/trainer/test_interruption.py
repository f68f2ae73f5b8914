"""Trainings that are stopped or killed continue exactly; ranks stop together."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.gradients import tiny_config
from tests.trainer.recorded import captions_of_steps
from tests.trainer.running import (
    assert_bitwise_equal,
    command,
    final_state,
    flat,
    losses,
    make_run,
    write_config,
)
from trainer import checkpoint, resume
from trainer.exit_codes import RESTART, UNFINISHED
from trainer.training import Training
from transforms.core import storage

ROOT = Path(__file__).parents[2]


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
    write_config(other, data=str(run / "images"))
    assert command(other, "loader.num_workers=1") == 0

    update = Training.update

    def interrupted(self: Training, batch: Any) -> None:
        if self.step == 1:
            os.kill(os.getpid(), getattr(signal, name))
        update(self, batch)

    monkeypatch.setattr(Training, "update", interrupted)
    assert command(run) == RESTART
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"stopped by {name}, saved at step 2 of 4; run the same command to go on" in said
    monkeypatch.undo()
    assert list(checkpoint.list_steps(checkpoints(run))) == [2]
    assert command(run) == 0
    assert_bitwise_equal(run, other)
    assert losses(run) == losses(other)


def test_a_continued_training_takes_over_nothing_of_the_mapped_file(run: Path) -> None:
    assert command(run) == 0
    training = Training(tiny_config(run), torch.device("cpu"))
    with resume.newest_here(checkpoints(run)) as found:
        assert found is not None
        training.restore(found.state)
    expected = final_state(run)
    for value in flat(found.state).values():
        if isinstance(value, torch.Tensor):
            value.fill_(1000)
    for name, value in flat(training.state()).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, flat(expected)[name]), name


def test_who_is_stopped_while_a_checkpoint_is_written_finishes_that_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Time is short then: to begin another would take twice as long."""
    update, replace_bytes, stopped = Training.update, storage.replace_bytes, threading.Event()

    def interrupted(self: Training, batch: Any) -> None:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            stopped.set()
        update(self, batch)

    def slow(data: bytes, url: str) -> None:
        if url.endswith("step-000000002.pt"):
            assert stopped.wait(30)
            time.sleep(1.0)
        replace_bytes(data, url)

    monkeypatch.setattr(Training, "update", interrupted)
    monkeypatch.setattr(storage, "replace_bytes", slow)
    assert command(run, "checkpoint.every_steps=2") == RESTART
    assert "stopped by SIGTERM, saved at step 2 of 4" in capsys.readouterr().err
    assert list(checkpoint.list_steps(checkpoints(run))) == [2]
    monkeypatch.undo()
    other = tmp_path / "other"
    write_config(other, data=str(run / "images"))
    assert command(other) == command(run) == 0
    assert_bitwise_equal(run, other)
    assert losses(run) == losses(other)


def start(
    run: Path, *overrides: str, ranks: int = 1, module: Sequence[str] = ("trainer.train",)
) -> "subprocess.Popen[str]":
    launcher = []
    if ranks > 1:
        launcher = ["-m", "trainer.launch", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", *module, str(run / "train.yaml"), *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process: "subprocess.Popen[str]", run: Path, step: int) -> None:
    while max(checkpoint.list_steps(checkpoints(run)), default=0) < step:
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]


def checkpoints(run: Path) -> str:
    return str(run / "train" / "checkpoints")


@pytest.mark.slow
def test_killed_at_any_moment_it_continues_bit_for_bit(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_config(other, data=str(run / "images"))
    # Sums in another order end in other bits: both sides count with one thread.
    settings = ["steps=40", "optim.warmup=5", "checkpoint.every_s=0", "num_threads=1"]
    assert command(other, *settings, "checkpoint.every_s=600") == 0
    for target in (5, 20):
        process = start(run, *settings)
        wait_for_checkpoint(process, run, target)
        process.kill()
        process.communicate()
        assert max(checkpoint.list_steps(checkpoints(run))) < 40, "killed in the middle"
    process = start(run, *settings)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "Trained 40 steps" in output
    assert_bitwise_equal(run, other, 40)
    assert losses(run) == losses(other)
    assert [step for step, _ in losses(run)] == list(range(40))


def finish(process: "subprocess.Popen[str]", step: int) -> None:
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert output.count(f"Trained {step} steps") == 1


STEPS, STOP = 40, 6
EXACT = (f"steps={STEPS}", "optim.warmup=5", "model.drop_path=0", "num_threads=1")


def record(
    run: Path, folder: str, ranks: int, stop: Sequence[str] = ("-", "0")
) -> tuple[int, dict[int, list[str]]]:
    """Train, recorded; returns the exit code, and the captions of each step over all ranks."""
    module = ["tests.trainer.recorded", str(run / folder), *stop]
    process = start(run, *EXACT, ranks=ranks, module=module)
    errors = process.communicate(timeout=200)[1]
    assert "Traceback" not in errors, errors
    return process.returncode, captions_of_steps(run / folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Trainings that nobody stopped: number of ranks -> run."""
    runs = {ranks: make_run(tmp_path_factory.mktemp("undisturbed") / "run") for ranks in (1, 2)}
    for ranks, run in runs.items():
        code, captions = record(run, "captions", ranks)
        assert (code, list(captions)) == (0, list(range(STEPS)))
    return runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "name"),
    [(1, 2, "SIGTERM"), (2, 1, "SIGTERM"), (2, 2, "SIGKILL")],
)
def test_stopped_it_continues_exactly_with_as_many_ranks_or_others(
    run: Path, undisturbed: dict[int, Path], before: int, after: int, name: str
) -> None:
    killed = name == "SIGKILL"
    write_config(run, checkpoint={"every_steps": 2} if killed else {})
    code, first = record(run, "first", before, (name, str(STOP)))
    assert code == (UNFINISHED if killed else RESTART)
    saved = max(checkpoint.list_steps(checkpoints(run)))
    assert saved in ((STOP - 2, STOP) if killed else (STOP + 1,))
    code, second = record(run, "second", after)
    assert (code, min(second)) == (0, saved)

    expected = captions_of_steps(undisturbed[1] / "captions")
    assert captions_of_steps(undisturbed[2] / "captions") == expected
    assert {**first, **second} == expected
    ours, theirs = losses(run), losses(undisturbed[after])
    assert [step for step, _ in ours] == list(range(STEPS))
    # Rounding differs between one rank and two, and grows from step to step.
    near = STOP + 3
    expected_losses = [loss for _, loss in theirs[:near]]
    assert [loss for _, loss in ours[:near]] == pytest.approx(expected_losses, 1e-3)
    if before == after:
        assert ours == theirs
        assert_bitwise_equal(run, undisturbed[after], STEPS)


def children(pid: int) -> list[int]:
    """Processes that a process started and that are still there."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(number) for number in listed.split()]


def ranks_of(launcher: int) -> dict[int, int]:
    """The ranks that `torchrun` started: rank -> process."""
    ranks: dict[int, int] = {}
    for pid in children(launcher):
        names = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks |= {int(name[5:]): pid for name in names if name.startswith(b"RANK=")}
    return ranks


in_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="looks for processes in /proc"
)


@pytest.mark.slow
@in_proc
def test_a_signal_to_every_process_at_once_loses_nothing_and_leaves_nobody(
    run: Path, undisturbed: dict[int, Path]
) -> None:
    """As a machine that shuts down sends it; the launcher signals its ranks once more."""
    write_config(run, checkpoint={"every_steps": 2}, loader={"num_workers": 1, "shuffle_shards": 2})
    process = start(run, *EXACT, ranks=2)
    wait_for_checkpoint(process, run, 6)
    ranks = ranks_of(process.pid)
    loaders = [pid for rank in ranks.values() for pid in children(rank)]
    assert len(loaders) >= 2
    for pid in (*loaders, *ranks.values(), process.pid):
        os.kill(pid, signal.SIGTERM)
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == RESTART, errors
    said = re.search(rf"stopped by .*, saved at step (\d+) of {STEPS}", errors)
    assert said, errors
    assert max(checkpoint.list_steps(checkpoints(run))) == int(said[1])
    assert not any(Path(f"/proc/{pid}").exists() for pid in loaders), "nobody is left"
    assert record(run, "captions", 2)[0] == 0
    assert_bitwise_equal(run, undisturbed[2], STEPS)


@pytest.mark.slow
@in_proc
def test_a_dead_rank_ends_the_job_with_its_name(run: Path) -> None:
    process = start(run, "steps=100000", "checkpoint.every_s=0", "loader.num_workers=1", ranks=2)
    wait_for_checkpoint(process, run, 3)
    ranks = ranks_of(process.pid)
    loaders = [pid for rank in ranks.values() for pid in children(rank)]
    os.kill(ranks[1], signal.SIGKILL)
    errors = process.communicate(timeout=90)[1]
    assert process.returncode != 0
    assert re.search(r"rank\s*: 1 ", errors), "the launcher names it"
    assert "SIGKILL" in errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values()), "nobody is left"
    deadline = time.monotonic() + 20
    while loaders and time.monotonic() < deadline:
        loaders = [pid for pid in loaders if Path(f"/proc/{pid}").exists()]
        time.sleep(0.1)
    assert not loaders, "those of the dead rank notice"
    with checkpoint.newest(checkpoints(run)) as newest:
        assert newest is not None
        assert newest.state["step"] >= 3


def test_a_full_disk_at_checkpoint_time_is_one_sentence_and_keeps_the_last(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_bytes = storage.replace_bytes

    def full(data: bytes, url: str) -> None:
        if url.endswith("step-000000003.pt"):
            raise storage.disk_full("write", url, OSError(errno.ENOSPC, "No space left on device"))
        replace_bytes(data, url)

    monkeypatch.setattr(storage, "replace_bytes", full)
    assert command(run, "checkpoint.every_steps=1") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "step-000000003.pt: the disk is full" in said
    monkeypatch.undo()
    with checkpoint.newest(checkpoints(run)) as newest:
        assert newest is not None
        assert newest.state["step"] == 2
    assert command(run) == 0
