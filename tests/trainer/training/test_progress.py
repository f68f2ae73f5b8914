"""Exit code 75, after which nobody counts, needs a checkpoint of the same start."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.machines import machines, ranks_of, wait_for_rank
from tests.support.processes import needs_proc
from tests.support.training_runs import checkpoints, make_run, start, wait_for_checkpoint
from trainer.checkpoints.files import list_checkpoints
from trainer.training.errors import NothingSavedError
from trainer.training.progress import VARIABLE, Progress, progress_of_ranks
from transforms.core.exit_codes import RESTART, UNFINISHED


def deadly(run: Path, *overrides: str) -> tuple[int, str]:
    """Return the exit code and the last line of a training that cannot pass the second step."""
    module = ["tests.support.deadly_training"]
    process = start(run, "loader.num_workers=1", *overrides, module=module)
    errors = process.communicate(timeout=100)[1]
    assert process.returncode is not None
    return process.returncode, errors.splitlines()[-1]


def test_a_training_that_never_gets_further_is_not_started_again_forever(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    code, said = deadly(run, "checkpoint.every_steps=1")
    assert code == RESTART
    assert "a data loading process died (SIGKILL); " in said
    assert "no checkpoint" not in said
    assert max(list_checkpoints(checkpoints(run))) == 2

    code, said = deadly(run, "checkpoint.every_steps=1")
    assert code == UNFINISHED, "what an earlier start has saved does not count"
    assert said.endswith(
        "; this start saved no checkpoint; once that is fixed, run the same command to continue."
    )


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(("every_s", "expected"), [(600, UNFINISHED), (0, RESTART)])
def test_a_machine_that_loses_another_needs_progress(
    tmp_path: Path, every_s: int, expected: int
) -> None:
    run = make_run(tmp_path / "run")
    settings = ["steps=100000", f"checkpoint.every_s={every_s}"]
    with machines(run, settings, settings) as (first, second):
        metrics = run / "train" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < 9:
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.1)
        os.kill(ranks_of(second.pid)[1], signal.SIGKILL)
        errors = first.communicate(timeout=60)[1]
        assert first.returncode == expected, errors
        assert "rank 0 lost the others" in errors
        assert ("this start saved no checkpoint" in errors) == (expected == UNFINISHED)
        second.communicate(timeout=60)
        assert second.returncode == UNFINISHED, "its own rank died"


@pytest.mark.slow
@needs_proc
def test_a_signal_before_the_first_checkpoint_is_no_reason_to_start_again(tmp_path: Path) -> None:
    """For instance in a job whose time limit is shorter than its start."""
    run = make_run(tmp_path / "run")
    process = start(run, "steps=100000", "checkpoint.every_s=0", ranks=2)
    wait_for_rank(process)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == UNFINISHED, errors
    assert "exit code is 1 (SIGTERM; this start saved no checkpoint)" in errors

    process = start(run, "steps=100000", "checkpoint.every_s=0", ranks=2)
    wait_for_checkpoint(process, run, 2)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == RESTART, errors
    assert "exit code is 75 (SIGTERM; this start saved a checkpoint)" in errors


@pytest.mark.slow
@needs_proc
def test_ranks_that_are_killed_while_they_save_had_progress_before(tmp_path: Path) -> None:
    """The launcher kills ranks that need longer than it gives them."""
    run = make_run(tmp_path / "run")
    process = start(run, "steps=100000", "checkpoint.every_s=0", ranks=2)
    wait_for_checkpoint(process, run, 2)
    time.sleep(1)  # The rank tells the launcher right after the file has its name.
    for rank in ranks_of(process.pid).values():
        os.kill(rank, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    time.sleep(2)
    for rank in ranks_of(process.pid).values():
        os.kill(rank, signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == RESTART, errors


def test_progress_is_told_to_the_launcher(tmp_path: Path) -> None:
    assert VARIABLE not in os.environ
    with progress_of_ranks(str(tmp_path)) as has_progress:
        assert not has_progress()
        progress = Progress()
        assert not has_progress()
        progress.make()
        assert has_progress()
    assert VARIABLE not in os.environ
    Progress().make()


@pytest.mark.parametrize("error", [LookupError("it is lost"), KeyboardInterrupt()])
def test_errors_are_replaced_only_without_progress(error: BaseException) -> None:
    progress = Progress()
    said = r"it is lost; this start saved no checkpoint|^interrupted before"
    with pytest.raises(NothingSavedError, match=said), progress.needed_after(type(error)):
        raise error
    with pytest.raises(ZeroDivisionError), progress.needed_after(type(error)):
        raise ZeroDivisionError
    progress.make()
    with pytest.raises(type(error)), progress.needed_after(type(error)):
        raise error
