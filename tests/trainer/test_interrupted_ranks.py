"""Several ranks, stopped or killed, continue exactly, with as many ranks or other numbers."""

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.machines import children, ranks_of
from tests.support.processes import needs_proc
from tests.support.recorded_training import captions_of_steps
from tests.support.training_runs import (
    assert_bitwise_equal,
    checkpoints,
    losses,
    make_run,
    start,
    wait_for_checkpoint,
    write_config,
)
from trainer.checkpoints.files import list_checkpoints, newest_checkpoint
from transforms.core.exit_codes import RESTART, UNFINISHED

pytestmark = pytest.mark.xdist_group("processes")

STEPS, STOP = 40, 6
EXACT = (
    f"steps={STEPS}",
    "optim.warmup=5",
    "model.drop_path=0.4",
    "num_threads=1",
    # With so few images a batch norm multiplies differences in rounding by a hundred.
    "objective.contrastive_head.norm=ln",
)


def record(
    run: Path, folder: str, ranks: int, stop: Sequence[str] = ("-", "0")
) -> tuple[int, dict[int, list[str]]]:
    """Train; return the exit code, and the captions of each step over all ranks."""
    module = ["tests.support.recorded_training", str(run / folder), *stop]
    process = start(run, *EXACT, ranks=ranks, module=module)
    errors = process.communicate(timeout=200)[1]
    assert "Traceback" not in errors, errors
    return process.wait(), captions_of_steps(run / folder)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return trainings that were not stopped: number of ranks -> run."""
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
    saved = max(list_checkpoints(checkpoints(run)))
    assert saved in ((STOP - 2, STOP) if killed else (STOP + 1,))
    code, second = record(run, "second", after)
    assert (code, min(second)) == (0, saved)

    expected = captions_of_steps(undisturbed[1] / "captions")
    assert captions_of_steps(undisturbed[2] / "captions") == expected
    assert {**first, **second} == expected
    ours, theirs = losses(run), losses(undisturbed[after])
    assert [step for step, _ in ours] == list(range(STEPS))
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], 1e-4)
    if before == after:
        assert ours == theirs
        assert_bitwise_equal(run, undisturbed[after], STEPS)


def assert_gone(pids: list[int]) -> None:
    """Check that processes end within seconds, also those of a dead rank."""
    deadline = time.monotonic() + 20
    while pids and time.monotonic() < deadline:
        pids = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        time.sleep(0.1)
    assert not pids


@pytest.mark.slow
@needs_proc
def test_a_signal_to_every_process_at_once_loses_nothing_and_leaves_nobody(
    run: Path, undisturbed: dict[int, Path]
) -> None:
    """As on a machine that shuts down; the launcher signals its ranks again."""
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
    assert max(list_checkpoints(checkpoints(run))) == int(said[1])
    assert_gone(loaders)
    assert record(run, "captions", 2)[0] == 0
    assert_bitwise_equal(run, undisturbed[2], STEPS)


@pytest.mark.slow
@needs_proc
def test_a_dead_rank_ends_the_job_with_its_name(run: Path) -> None:
    process = start(run, "steps=100000", "checkpoint.every_s=0", "loader.num_workers=1", ranks=2)
    wait_for_checkpoint(process, run, 3)
    ranks = ranks_of(process.pid)
    loaders = [pid for rank in ranks.values() for pid in children(rank)]
    os.kill(ranks[1], signal.SIGKILL)
    errors = process.communicate(timeout=90)[1]
    assert process.returncode != 0
    assert re.search(r"rank\s*: 1 ", errors), "the launcher names the rank"
    assert "SIGKILL" in errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values()), "no rank is left"
    assert_gone(loaders)
    with newest_checkpoint(checkpoints(run)) as newest:
        assert newest is not None
        assert newest.state["step"] >= 3
