import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.__main__ import main
from pipelines.stage import UnfinishedError, run_stage
from pipelines.status import WINDOW_S, columns, rate
from tests.pipelines.counting import stage
from transforms.core import storage
from transforms.core.outputs import find_outputs


def test_a_stage_that_stopped_half_way(
    any_storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{any_storage}/captions-raw"
    with pytest.raises(UnfinishedError):
        run_stage(stage(url, 8, raise_in=5), [])
    capsys.readouterr()
    done = len(storage.list_files(f"{url}/commits"))
    (output,) = find_outputs(any_storage)
    shown = columns(output, time.time() + 2 * WINDOW_S)
    assert shown[0] == f"{done}/8"
    assert shown[4] == str(done), "every shard of this stage has one dead letter"
    assert shown[5].startswith("stopped: nothing was committed for 0:30")
    assert main(["status", any_storage]) == 0
    assert capsys.readouterr().out.count("\n") == 2


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
