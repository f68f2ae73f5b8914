"""The launcher exits with the code of its ranks; run with the real `torchrun` and two ranks."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.processes import needs_proc
from tests.support.training_runs import make_run
from trainer.checkpoints.files import list_checkpoints
from trainer.launch import exit_code, main
from trainer.signals import STOP_SIGNALS
from transforms.core.exit_codes import NOT_FINITE, OK, RESTART, UNFINISHED, WRONG_CONFIG


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def launch(run: Path, *overrides: str) -> "subprocess.Popen[str]":
    options = ["--standalone", "--nproc-per-node=2", "-m", "trainer.train"]
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.launch", *options, str(run / "train.yaml"), *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "code", "sentence"),
    [
        ("log_every=2", OK, ""),
        ("optim.warmup=9", WRONG_CONFIG, "optim.warmup 9 is more than steps 4"),
        ("optim.learning_rate=1e38", NOT_FINITE, "is not finite"),
    ],
)
def test_the_ranks_code_comes_out(run: Path, override: str, code: int, sentence: str) -> None:
    process = launch(run, override)
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == code, errors
    assert sentence in errors
    assert ("launcher's exit code is" in errors) == bool(code)
    assert "Root Cause" not in errors


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_a_signal_asks_for_a_restart_once_it_is_saved(run: Path) -> None:
    process = launch(run, "steps=100000", "checkpoint.every_s=0")
    folder = str(run / "train" / "checkpoints")
    while max(list_checkpoints(folder), default=0) < 2:
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGUSR1)
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == RESTART, errors
    assert f"saved at step {max(list_checkpoints(folder))} of 100000" in errors


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
@needs_proc
def test_the_others_of_a_killed_rank_say_so_in_a_sentence(run: Path) -> None:
    """Wherever the other rank is at that moment, also in a collective inside torch."""
    process = launch(run, "steps=100000", "checkpoint.every_s=0")
    folder = str(run / "train" / "checkpoints")
    while max(list_checkpoints(folder), default=0) < 2:
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[1]), signal.SIGKILL)
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == UNFINISHED, errors
    assert re.search(r"rank 0 lost the others .* once that is fixed, run the same", errors)
    assert "Root Cause" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({RESTART}, RESTART),
        ({RESTART, -signal.SIGTERM}, RESTART),  # A rank without signal handlers yet.
        ({RESTART, -signal.SIGKILL}, UNFINISHED),  # A rank was killed, and the others lost it.
        ({RESTART, UNFINISHED}, UNFINISHED),
        ({RESTART, WRONG_CONFIG}, WRONG_CONFIG),
        ({NOT_FINITE, -signal.SIGTERM}, NOT_FINITE),
        ({-signal.SIGSEGV}, UNFINISHED),
        ({-signal.SIGTERM}, UNFINISHED),
    ],
)
def test_what_cannot_mend_itself_outweighs_a_restart(codes: set[int], expected: int) -> None:
    assert exit_code(codes) == expected


def test_ranks_have_time_to_save_after_any_stop_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    monkeypatch.setattr("torch.distributed.run.run", launched.append)
    for options in ([], ["--shutdown-timeout=7"]):
        assert main([*options, "-m", "trainer.train", "some.yaml"]) == OK
    assert [options.shutdown_timeout for options in launched] == [110, 7]
    heard = launched[0].signals_to_handle.split(",")
    assert set(heard) == {number.name for number in STOP_SIGNALS}


def test_torchruns_own_folder_goes_when_the_training_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def launched(options: Any) -> None:
        folders.append(Path(options.log_dir))
        assert folders[-1].is_dir()

    monkeypatch.setattr("torch.distributed.run.run", launched)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["-m", "trainer.train", "some.yaml"]) == OK
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "logs").mkdir()
    assert main([f"--log-dir={tmp_path / 'logs'}", "-m", "trainer.train", "some.yaml"]) == OK
    assert folders[-1] == tmp_path / "logs"


def test_help_says_what_is_not_torchruns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert said.startswith("usage: python -m trainer.launch ")
    assert "--shutdown-timeout=110" in said and "75, start it again" in said
    assert "--master-addr" in said


@pytest.mark.parametrize("option", ["--nproc-per-node=many", "--nnodes=few", "--nnodes=2"])
def test_wrong_options_are_a_sentence(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option, "-m", "trainer.train"]) == WRONG_CONFIG
    said = capsys.readouterr().err
    assert said.startswith("The launcher's options do not fit: ")
    assert option.partition("=")[2] in said


def test_the_table_of_exit_codes_is_whole() -> None:
    text = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|", text.partition("## Exit codes")[2], re.MULTILINE)
    assert [int(row) for row in rows] == [OK, UNFINISHED, WRONG_CONFIG, NOT_FINITE, RESTART]
