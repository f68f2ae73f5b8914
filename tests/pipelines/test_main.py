import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.__main__ import jobs, main
from pipelines.options import beam_options, runs_here, split_flags
from pipelines.runner import run_stage
from tests.support.counting_stage import stage
from tests.support.paths import ROOT
from tests.support.processes import wait_until_ended
from transforms.core.errors import ConfigError


def test_no_arguments_prints_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    without = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == without
    assert all(job in without for job in jobs())


@pytest.mark.parametrize("job", jobs())
def test_every_key_of_every_job_has_help(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([job, "--help"]) == 0
    said = capsys.readouterr().out
    takes = "RUN [key=" if job in ("report", "status", "verify", "index") else "CONFIG [key="
    assert said.startswith(f"python -m pipelines {job} {takes}")
    lines = said.partition("keys:\n")[2].splitlines()
    keys = [n for n, line in enumerate(lines) if re.match(r"  \S+  \(", line)]
    assert keys
    for number in keys:
        assert lines[number + 1].startswith("      "), f"{lines[number]} has no description"


def test_without_space_for_temporary_files_a_job_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = str(tmp_path / "full")
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [full])
    assert main(["images", "absent.yaml"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(f"no folder .* written to .*{full}.*: .* set TMPDIR to a folder.*\n", said)
    assert main(["status", "absent"]) == 2, "it needs none"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["paint"], "unknown job 'paint'"),
        (["captions"], "needs a config file"),
        (["captions", "run=x"], "needs a config file"),
        (["status"], "status needs the folder of a run"),
        (["verify", "absent"], "absent holds no stage"),
        (["status", "s3://bucket/run"], ": expected a local path, gs://bucket/... or memory"),
        (["verify", "file:///tmp/run"], ": expected a local path, gs://bucket/... or memory"),
        (["status", "absent"], "absent holds no stage"),
        (["index", "absent"], "there is no such stage"),
        (["verify", "absent", "fix=true"], "unknown key 'fix'"),
        (["captions", "absent.yaml"], "'absent.yaml' cannot be read"),
    ],
)
def test_wrong_calls_end_with_two_and_a_sentence(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("job", jobs())
def test_unknown_key_is_named(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("run: out\nsede: 1\n")
    assert main([job, str(path)]) == 2
    assert "unknown key 'sede'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["123", "1e5", "yes", "été 🦊", 'a "b": c'])
def test_a_run_may_have_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status", name]) == 2
    assert f"{name} holds no stage" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["status", "--version"], ["captions", "--version"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out == f"synclr {importlib.metadata.version('synclr')}\n"


@pytest.mark.parametrize(
    ("arguments", "words", "flags"),
    [
        (["a.yaml", "--runner=Flink"], ["a.yaml"], ["--runner=Flink"]),
        (["--runner", "Flink", "a.yaml", "k=1"], ["a.yaml", "k=1"], ["--runner=Flink"]),
        (["a.yaml", "--streaming", "k=1"], ["a.yaml", "k=1"], ["--streaming"]),
        (["--no_use_public_ips", "a.yaml"], ["a.yaml"], ["--no_use_public_ips"]),
        (
            ["a.yaml", "--experiments", "a=b", "k=1", "--experiments", "c"],
            ["a.yaml", "k=1"],
            ["--experiments=a=b", "--experiments=c"],
        ),
        (["a.yaml", "--num_workers", "-1"], ["a.yaml"], ["--num_workers=-1"]),
        (
            ["--update_compatibility_version", "--streaming", "a.yaml"],
            ["a.yaml"],
            ["--update_compatibility_version", "--streaming"],
        ),
        (["a.yaml", "--absent=1"], ["a.yaml"], ["--absent=1"]),
    ],
)
def test_the_value_of_a_flag_is_not_taken_for_a_word(
    arguments: list[str], words: list[str], flags: list[str]
) -> None:
    assert split_flags(arguments) == (words, flags)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--absent", "job.yaml"], "unknown flag '--absent': expected a flag of Beam"),
        (["job.yaml", "--runner"], "flag '--runner' needs a value: --runner=VALUE"),
        (["job.yaml", "--runner", "--streaming"], "flag '--runner' needs a value"),
        (["--runner", "job.yaml"], "captions needs a config file"),
        (["--runner", "PrismRunner", "job.yaml"], "'job.yaml' cannot be read"),
    ],
)
def test_wrong_flags_end_with_two_and_a_sentence(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["captions", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--direct_running_mode=multi_processing"],
        ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"],
        ["--runner=DirectRunner", "--direct_running_mode=multi_processing"],
    ],
)
def test_processes_of_beam_are_refused(flags: list[str], tmp_path: Path) -> None:
    """Beam would wait for ever for a worker process that died."""
    with pytest.raises(ConfigError, match=r"direct_running_mode.* several times at once") as caught:
        run_stage(stage(str(tmp_path / "run"), 3), split_flags(flags)[1])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists(), "before anything is written"
    beam_options(["--runner=FlinkRunner", "--direct_running_mode=multi_processing"])


@pytest.mark.parametrize("flags", [["--runner", "FlinkRunner"], ["--runner=FlinkRunner"]])
def test_both_forms_of_a_flag_reach_beam(flags: list[str]) -> None:
    _, joined = split_flags(["job.yaml", *flags])
    assert not runs_here(joined)
    assert beam_options(joined).get_all_options()["runner"] == "FlinkRunner"


def test_an_unknown_runner_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'--runner' has value 'Dirct': .*DirectRunner"):
        run_stage(stage(str(tmp_path / "run"), 3), ["--runner=Dirct"])
    assert not (tmp_path / "run").exists()


WORKING = """
import os, sys, threading, time
from pipelines import __main__ as cli

def work() -> int:
    child = os.fork()
    if not child:
        # From the child: Python drops a signal that comes while a fork is under way.
        print(os.getpid(), flush=True)
        time.sleep(600)
    working = threading.Thread(target=time.sleep, args=(600,))
    working.start()
    working.join()
    return 0

cli.main = work
cli.entry()
"""
"""A job whose thread works for ten minutes, as those of Beam do, and that has forked a child."""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted; run the same command again to continue"),
        (signal.SIGTERM, 143, "stopped by SIGTERM; run the same command again to continue"),
    ],
)
def test_a_stop_signal_ends_a_job_at_once_with_a_sentence(
    number: signal.Signals, code: int, said: str
) -> None:
    job = subprocess.Popen(
        [sys.executable, "-c", WORKING],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    child = int(job.stdout.readline())
    os.kill(child, number)
    wait_until_ended([child])
    assert job.poll() is None
    job.send_signal(number)
    assert job.wait(20) == code
    assert job.communicate()[1] == f"\n{said}\n", "and nothing from the child"
