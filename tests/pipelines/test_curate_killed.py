"""A curation that is killed repeatedly ends with the bytes of an undisturbed one."""

import signal
from pathlib import Path

import pytest

from pipelines import curate
from tests.support.curation import LONG, config, distinct, write_raw
from tests.support.stage_content import content
from tests.support.warm_process import WarmProcess

pytestmark = pytest.mark.xdist_group("processes")


@pytest.mark.slow
def test_a_curation_that_is_killed_again_and_again(tmp_path: Path) -> None:
    undisturbed, killed = str(tmp_path / "undisturbed"), str(tmp_path / "killed")
    for url in (undisturbed, killed):
        write_raw(url, [*distinct(77), "caption number 5", LONG, f"{LONG}!"])
    curate.run(config(undisturbed), [])
    deaths = 0
    while (code := WarmProcess("tests.support.killed_curation", killed, "8").wait()) != 0:
        assert code == -signal.SIGKILL
        deaths += 1
        assert deaths < 15, "every process must get further than the one before"
    assert deaths >= 3
    assert content(f"{killed}/captions") == content(f"{undisturbed}/captions")
