from pathlib import Path

import pytest

from pipelines.__main__ import jobs, main


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
    keys = [number for number, line in enumerate(lines) if line.startswith("  ") and line[2] != " "]
    assert keys
    for number in keys:
        assert lines[number + 1].startswith("      "), f"{lines[number]} has no description"


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
