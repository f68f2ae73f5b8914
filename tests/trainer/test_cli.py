"""The trainer's commands share one command line: version, help, last line and exit code."""

import importlib.metadata
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.paths import ROOT
from trainer import cli, export, launch, replay, train
from trainer.cli import Ending
from trainer.config import TrainConfig
from trainer.evaluate import __main__ as evaluate
from trainer.evaluate.protocols import config_class
from trainer.training.errors import RankConfigError
from transforms.core import references
from transforms.core.config_keys import describe
from transforms.core.errors import (
    ConfigError,
    DamagedFileError,
    MissingFileError,
    StorageError,
    UnfinishedError,
)
from transforms.core.exit_codes import INTERRUPTED, OK, UNFINISHED, WRONG_CONFIG

COMMANDS = (train, launch, replay, export, evaluate)


def failing(error: BaseException) -> Callable[[], str]:
    def work() -> str:
        raise error

    return work


def test_last_lines_show_references_to_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(references._hidden, "s3cr3t", "${oc.env:KEY}")
    assert cli.run_command(lambda: "read with s3cr3t") == OK
    assert cli.run_command(failing(ConfigError("s3cr3t is wrong"))) == WRONG_CONFIG
    assert capsys.readouterr() == ("read with ${oc.env:KEY}\n", "${oc.env:KEY} is wrong\n")


def test_without_space_for_temporary_files_every_command_ends_with_a_sentence(
    tmp_path: Path,
) -> None:
    """torch cannot be imported then; a file that may not grow stands for a disk that is full."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("TMPDIR", "TEMP", "TMP"):
        environment.pop(name, None)
    commands = ("train", "launch", "replay", "export", "evaluate")
    running = [
        subprocess.Popen(
            [sys.executable, "-m", f"trainer.{name}", "one", "two"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )
        for name in commands
    ]
    for process in running:
        said = process.communicate()[0]
        assert process.returncode == UNFINISHED, said
        assert said.startswith("no folder for temporary files can be written to ("), said
        assert said.endswith("set TMPDIR to a folder on another disk\n"), said
        assert said.count("\n") == 1


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_prints_the_version(
    module: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        module.main(["--version"])
    assert stopped.value.code == OK
    assert capsys.readouterr().out == f"synclr {importlib.metadata.version('synclr')}\n"


@pytest.mark.parametrize(
    ("module", "config"), [(train, TrainConfig), (replay, TrainConfig), (evaluate, config_class())]
)
def test_help_describes_every_key(
    module: ModuleType, config: type[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == OK
    assert describe(config) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        (train, "config"),
        (replay, "file"),
        (export, "checkpoint, out"),
        (evaluate, "task"),
    ],
)
def test_wrong_calls_name_only_what_is_required(
    module: ModuleType, needed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        module.main([])
    assert stopped.value.code == WRONG_CONFIG
    expected = f"the following arguments are required: {needed}\n"
    assert capsys.readouterr().err.endswith(expected)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("key 'a' is wrong"), WRONG_CONFIG, "key 'a' is wrong"),
        (StorageError(None, "cannot read b"), UNFINISHED, "cannot read b"),
        (MissingFileError(None, "there is no c"), UNFINISHED, "there is no c"),
        (DamagedFileError("d is damaged"), UNFINISHED, "d is damaged"),
        (UnfinishedError("2 shards are missing"), UNFINISHED, "2 shards are missing"),
        (KeyboardInterrupt(), INTERRUPTED, "Interrupted: run the same command again."),
    ],
)
def test_errors_become_a_last_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command(failing(error)) == code
    assert capsys.readouterr() == ("", f"{line}\n")


def test_success_prints_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(lambda: "done") == OK
    assert capsys.readouterr() == ("done\n", "")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run_command(failing(ZeroDivisionError()))


def test_the_first_ending_that_fits_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    endings = (Ending(RankConfigError, 7, "first: {}"), *cli.ENDINGS)
    assert cli.run_command(failing(RankConfigError("no GPU")), endings) == 7
    assert cli.run_command(failing(ConfigError("wrong")), endings) == WRONG_CONFIG
    assert capsys.readouterr().err == "first: no GPU\nwrong\n"


def test_other_ranks_print_only_what_rank_0_cannot_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    endings = (Ending(RankConfigError, WRONG_CONFIG, every_rank=True), *cli.ENDINGS)
    assert cli.run_command(failing(ConfigError("wrong")), endings) == WRONG_CONFIG
    assert cli.run_command(lambda: "done", endings) == OK
    assert capsys.readouterr() == ("", "")
    assert cli.run_command(failing(RankConfigError("no GPU")), endings) == WRONG_CONFIG
    assert cli.run_command(lambda: "report", every_rank=True) == OK
    assert capsys.readouterr() == ("report\n", "no GPU\n")


@pytest.mark.parametrize(
    ("module", "work", "arguments", "code"),
    [
        (train, "load_config", ["train.yaml"], UNFINISHED),
        (replay, "load_checkpoint", ["replay-step-000000001.pt"], INTERRUPTED),
        (export, "export", ["checkpoint", "out"], INTERRUPTED),
        (evaluate, "load_config", ["knn", "evaluate.yaml"], INTERRUPTED),
    ],
)
def test_ctrl_c_asks_for_the_same_command(
    module: ModuleType,
    work: str,
    arguments: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, work, interrupted)
    assert module.main(arguments) == code
    assert "run the same command" in capsys.readouterr().err.splitlines()[-1]


def test_importing_the_command_line_does_not_import_torch() -> None:
    code = "import sys, trainer.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
