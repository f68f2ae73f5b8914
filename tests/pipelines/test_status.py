import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.__main__ import main
from pipelines.runner import run_stage
from pipelines.status import MIN_SILENCE_S, WINDOW_S, columns, longest_silence, rate, screen
from tests.support.counting_stage import stage
from transforms.core import storage
from transforms.core.errors import UnfinishedError
from transforms.core.shards import encode_commit, read_commit
from transforms.core.stages import StageOutput, find_outputs


def test_a_stage_that_stopped_half_way(
    any_storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{any_storage}/captions-raw"
    run_stage(stage(url, 4), [])  # Shards come in random order: the broken one may be first.
    with pytest.raises(UnfinishedError):
        run_stage(stage(url, 8, raise_in=5), [])
    capsys.readouterr()
    done = len(storage.list_files(f"{url}/commits"))
    (output,) = find_outputs(any_storage)
    shown = columns(output, time.time() + 2 * WINDOW_S)
    assert shown[0] == f"{done}/8"
    assert shown[4] == str(done), "every shard of this stage has one dead letter"
    assert shown[3] == "-", "no worker is running"
    assert shown[5].startswith("stopped: nothing was committed for 0:30")
    assert main(["status", any_storage]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def commits_at(times: list[float], folder: str) -> None:
    for shard, moment in enumerate(times):
        path = Path(folder) / "commits" / f"{shard:06d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (moment, moment))


def shown_at(times: list[float], now: float, tmp_path: Path) -> list[str]:
    made = stage(f"{tmp_path}/captions", 100)
    commits_at(times, made.folder.url)
    return columns(made, now)


def test_a_stage_is_running_while_its_commits_are_recent(tmp_path: Path) -> None:
    times = [1e9 + 10 * shard for shard in range(20)]
    during = shown_at(times, max(times) + MIN_SILENCE_S - 1, tmp_path)
    assert during[5] == "running"
    assert during[3] != "-"
    after = shown_at(times, max(times) + MIN_SILENCE_S + 1, tmp_path)
    assert after[5] == "stopped: nothing was committed for 0:05:01"
    assert after[3] == "-"


def test_slow_shards_are_waited_for(tmp_path: Path) -> None:
    shown = shown_at([1e9 + 3600 * shard for shard in range(5)], 1e9 + 4 * 3600 + 7000, tmp_path)
    assert shown[5] == "running"
    assert shown[3] != "-", "a rate follows from the last commits, however old they are"


def test_workers_in_step_and_pauses_between_sittings() -> None:
    in_step = [1200.0 * turn + worker for turn in range(10) for worker in range(4)]
    assert longest_silence(in_step) > 1200
    sittings = [day * 86400.0 + 60 * shard for day in range(3) for shard in range(50)]
    assert longest_silence(sittings) == MIN_SILENCE_S


def test_a_stage_without_its_index_is_unfinished(tmp_path: Path) -> None:
    made = stage(f"{tmp_path}/captions", 3)
    run_stage(made, [])
    storage.delete(made.folder.success_url)
    assert columns(made, time.time())[5].startswith("unfinished: every shard is committed")


def test_an_index_of_an_unfinished_stage_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnfinishedError):
        run_stage(stage(f"{tmp_path}/captions", 8, raise_in=5), [])
    capsys.readouterr()
    assert main(["index", str(tmp_path), "stage=captions"]) == 1
    error = capsys.readouterr().err
    assert "of 8 shards are not committed" in error
    assert "run `python -m pipelines curate` until it is complete" in error
    assert "same command" not in error


def test_a_complete_stage_says_what_it_holds(tmp_path: Path) -> None:
    run_stage(stage(f"{tmp_path}/captions", 3), [])
    (output,) = find_outputs(str(tmp_path))
    shown = columns(output, time.time())
    assert (shown[0], shown[1], shown[3], shown[4]) == ("3/3", "100.0%", "-", "3")
    assert shown[5] == "complete: 15 captions"


@given(st.integers(2, 50), st.floats(0.5, 15), st.floats(0, 5e5))
def test_the_rate_of_a_running_stage_is_that_of_the_last_minutes(
    number: int, interval: float, pause: float
) -> None:
    now = 1e6
    recent = [now - interval * i for i in range(number)]
    older = [now - WINDOW_S - 1 - pause - i for i in range(1000)]
    assert rate([*older, *recent], now, running=True) == pytest.approx(1 / interval)


def test_a_damaged_file_of_dead_letters_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = stage(f"{tmp_path}/captions", 3)
    run_stage(made, [])
    storage.replace_bytes(b"PAR1", made.folder.failures_url(1))
    assert main(["status", str(tmp_path)]) == 1
    assert "captions-000001.parquet is damaged" in capsys.readouterr().err.splitlines()[-1]


def test_no_rate_out_of_nothing() -> None:
    for times in ([], [5.0], [5.0, 5.0]):
        assert rate(times, 5.0, running=False) == 0
    assert rate([5.0], 5.0, running=True) == 0


def with_times(folder: str, seconds: float, every_s: float, now: float) -> StageOutput:
    """Return a complete stage whose shards took `seconds` and were committed every `every_s`."""
    made = stage(folder, 12)
    run_stage(made, [])
    for shard in range(12):
        record = replace(read_commit(made.folder, shard), seconds=seconds)
        storage.replace_bytes(encode_commit(record), made.folder.commit_url(shard))
        moment = now - every_s * (11 - shard)
        os.utime(made.folder.commit_url(shard), (moment, moment))
    return made


def test_a_copy_has_no_rate(tmp_path: Path) -> None:
    made = with_times(f"{tmp_path}/captions", 60.0, 20.0, 1e9)
    assert columns(made, 1e9)[2] == "0.3/s", "6 captions in 20 seconds"
    copied = with_times(f"{tmp_path}/copy/captions", 60.0, 0.01, 1e9)
    assert columns(copied, 1e9)[2] == "-"


def test_a_watched_run_shows_bars_workers_and_the_training(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert "no stage was started yet" in screen(run, 1e9)
    made = with_times(f"{run}/captions", 60.0, 20.0, 1e9)
    storage.delete(made.folder.success_url)
    for shard in range(9, 12):
        storage.delete(made.folder.commit_url(shard))
    metrics = [{"step": step, "loss": 2.5 - step / 1000} for step in (1233, 1234)]
    lines = "".join(json.dumps(line) + "\n" for line in metrics)
    storage.replace_bytes((lines + '{"step": 12').encode(), f"{run}/train/metrics.jsonl")
    shown = screen(run, 1e9)
    (row,) = (line.split() for line in shown.splitlines() if line.startswith("captions"))
    assert row[1:4] == ["\N{FULL BLOCK}" * 15 + "\N{MIDDLE DOT}" * 5, "9/12", "75.0%"]
    assert row[-2:] == ["~3", "running"], "shards of a minute, three a minute"
    assert shown.splitlines()[-1] == "training  step 1,234  loss 1.266"


def test_a_run_is_watched_until_ctrl_c(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(stage(f"{tmp_path}/captions", 3), [])
    before = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert main(["status", "--watch", str(tmp_path), "every_s=0.05"]) == 0
    assert capsys.readouterr().out.count("complete: 15 captions") > 2
    assert signal.getsignal(signal.SIGINT) == before
