"""A curation that is killed repeatedly ends with the bytes of an undisturbed one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import curate
from tests.support.curation import LONG, config, distinct, write_raw
from tests.support.paths import ROOT
from tests.support.stage_content import content


@pytest.mark.slow
def test_a_curation_that_is_killed_again_and_again(tmp_path: Path) -> None:
    undisturbed, killed = str(tmp_path / "undisturbed"), str(tmp_path / "killed")
    for url in (undisturbed, killed):
        write_raw(url, [*distinct(77), "caption number 5", LONG, f"{LONG}!"])
    curate.run(config(undisturbed), [])
    command = [sys.executable, "-m", "tests.support.killed_curation", killed, "8"]
    deaths = 0
    while (code := subprocess.run(command, cwd=ROOT, capture_output=True).returncode) != 0:
        assert code == -signal.SIGKILL
        deaths += 1
        assert deaths < 15, "every process must get further than the one before"
    assert deaths >= 3
    assert content(f"{killed}/captions") == content(f"{undisturbed}/captions")
