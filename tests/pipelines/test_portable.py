"""Stages on a portable runner of Beam: the same bytes as on the direct runner."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.runner import run_stage
from tests.support.counting_stage import stage
from tests.support.demo import demo_commands, images, prompts
from tests.support.paths import ROOT
from tests.support.portable_runner import needs_prism, worker_pool
from tests.support.stage_content import content
from transforms.core.errors import UnfinishedError

pytestmark = [pytest.mark.slow, needs_prism, pytest.mark.xdist_group("models")]


def test_a_stage_gives_the_same_bytes(tmp_path: Path) -> None:
    direct, portable = str(tmp_path / "a"), str(tmp_path / "b")
    run_stage(stage(direct, 5), [])
    with worker_pool(tmp_path / "pool.log") as pool:
        run_stage(stage(portable, 5), pool.flags)
    assert content(portable) == content(direct)


def test_a_worker_error_is_one_sentence(tmp_path: Path) -> None:
    url = str(tmp_path / "a")
    with (
        worker_pool(tmp_path / "pool.log") as pool,
        pytest.raises(UnfinishedError, match="this shard cannot be made") as caught,
    ):
        run_stage(stage(url, 5, raise_in=3), pool.flags)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(1200)
def test_captions_and_images_are_those_of_the_direct_runner(demo: Path, tmp_path: Path) -> None:
    portable = tmp_path / "portable"
    with worker_pool(tmp_path / "pool.log") as pool:
        for command in demo_commands(portable)[:3]:
            subprocess.run([*command, *pool.flags], cwd=ROOT, check=True, capture_output=True)
    ours, theirs = prompts(portable), prompts(demo)
    both = set(ours) & set(theirs)
    assert both
    assert all(ours[ordinal] == theirs[ordinal] for ordinal in both)
    shared = set(images(portable)) & set(images(demo))
    assert shared
    assert all(images(portable)[text] == images(demo)[text] for text in shared)


@pytest.mark.timeout(900)
def test_a_worker_that_is_killed_loses_nothing(demo: Path, tmp_path: Path) -> None:
    portable = tmp_path / "portable"
    for stage_name in ("captions-raw", "captions"):
        shutil.copytree(demo / stage_name, portable / stage_name)
    command = demo_commands(portable)[2]
    with worker_pool(tmp_path / "pool.log") as pool:
        command += pool.flags
        started = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while not (committed := list((portable / "images").glob("commits/*/*.json"))):
            assert started.poll() is None, started.communicate()[1]
            time.sleep(0.02)
        assert pool.kill_workers() == 1
        said = started.communicate(timeout=120)[1].splitlines()
        assert started.returncode == 1, said
        assert "SDK worker disconnected" in said[-1]
        assert said[-1].endswith(f"{portable}/images: run the same command again to continue")
        assert not [line for line in said if line.startswith("Traceback")]
        shards = {path: path.stat().st_mtime_ns for path in committed}
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in committed} == shards, "they stay"
    assert content(f"{portable}/images") == content(f"{demo}/images")
    assert main(["verify", str(portable)]) == 0
