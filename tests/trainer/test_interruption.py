"""Trainings that are stopped or killed continue exactly; ranks stop together."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.running import (
    assert_bitwise_equal,
    command,
    losses,
    make_run,
    write_config,
)
from trainer import checkpoint
from trainer.exit_codes import RESTART
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
    assert list(checkpoint.list_steps(str(run / "train" / "checkpoints"))) == [2]
    assert command(run) == 0
    assert_bitwise_equal(run, other)
    assert losses(run) == losses(other)


def start(run: Path, *overrides: str, ranks: int = 1) -> "subprocess.Popen[str]":
    launcher = ["-m"]
    if ranks > 1:
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1",
            "--shutdown-timeout=60",
            "-m",
        ]
    return subprocess.Popen(
        [sys.executable, *launcher, "trainer.train", str(run / "train.yaml"), *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_at_any_moment_it_continues_bit_for_bit(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_config(other, data=str(run / "images"))
    # Sums in another order end in other bits: both sides count with one thread.
    settings = ["steps=40", "optim.warmup=5", "checkpoint.every_s=0", "num_threads=1"]
    assert command(other, *settings, "checkpoint.every_s=600") == 0
    folder = str(run / "train" / "checkpoints")
    for target in (5, 20):
        process = start(run, *settings)
        while max(checkpoint.list_steps(folder), default=0) < target:
            time.sleep(0.02)
            assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()
        assert max(checkpoint.list_steps(folder)) < 40, "killed in the middle"
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


@pytest.mark.slow
def test_torchrun_stops_together_and_continues_with_as_many_ranks_or_fewer(
    run: Path, tmp_path: Path
) -> None:
    settings = ["steps=30", "optim.warmup=5", "model.drop_path=0", "num_threads=1"]
    alone, together, fewer = (tmp_path / name for name in ("alone", "together", "fewer"))
    for other in (alone, together, fewer):
        write_config(other, data=str(run / "images"))
    assert command(alone, *settings) == 0
    finish(start(together, *settings, ranks=2), 30)
    folder = run / "train" / "checkpoints"
    process = start(run, *settings, "checkpoint.every_s=0", ranks=2)
    while max(checkpoint.list_steps(str(folder)), default=0) < 5:
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=100)[1]
    assert process.returncode != 0
    assert "run the same command to go on" in errors
    assert 5 <= max(checkpoint.list_steps(str(folder))) < 30, "stopped in the middle"
    shutil.copytree(run / "train", fewer / "train")

    finish(start(run, *settings, ranks=2), 30)
    assert_bitwise_equal(run, together, 30)
    assert losses(run) == losses(together)
    finish(start(fewer, *settings, ranks=1), 30)
    for other in (alone, fewer):
        ours, theirs = losses(other), losses(together)
        assert [step for step, _ in ours] == list(range(30))
        # Rounding differs between one rank and two, and grows from step to step.
        first = [loss for _, loss in theirs[:7]]
        assert [loss for _, loss in ours[:7]] == pytest.approx(first, 1e-3)


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
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_signals_to_whole_process_groups_save_and_leave_no_loader_behind(
    run: Path, name: str
) -> None:
    """As `torchrun` sends them: to each rank and all that it started."""
    settings = ["steps=100000", "loader.num_workers=1", "checkpoint.every_s=0"]
    process = start(run, *settings, ranks=2)
    folder = str(run / "train" / "checkpoints")
    while max(checkpoint.list_steps(folder), default=0) < 3:
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
    ranks = ranks_of(process.pid)
    loaders = [pid for rank in ranks.values() for pid in children(rank)]
    assert len(loaders) >= 2
    process.send_signal(getattr(signal, name))
    errors = process.communicate(timeout=100)[1]
    assert process.returncode != 0
    said = re.search(r"stopped by .*, saved at step (\d+) of 100000", errors)
    assert said, errors
    assert max(checkpoint.list_steps(folder)) == int(said[1])
    assert not any(Path(f"/proc/{pid}").exists() for pid in loaders), "nobody is left"


@pytest.mark.slow
@in_proc
def test_a_dead_rank_ends_the_job_with_its_name(run: Path) -> None:
    process = start(run, "steps=100000", "checkpoint.every_s=0", "loader.num_workers=1", ranks=2)
    folder = str(run / "train" / "checkpoints")
    while max(checkpoint.list_steps(folder), default=0) < 3:
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
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
    newest = checkpoint.load_newest(folder)
    assert newest is not None
    assert newest["step"] >= 3


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
    newest = checkpoint.load_newest(str(run / "train" / "checkpoints"))
    assert newest is not None
    assert newest["step"] == 2
    assert command(run) == 0
