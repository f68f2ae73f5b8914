"""Stages on a portable runner of Beam: the same bytes as on the direct runner."""

import subprocess
from pathlib import Path

import pytest

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
    with worker_pool(tmp_path / "pool.log") as flags:
        run_stage(stage(portable, 5), flags)
    assert content(portable) == content(direct)


def test_a_worker_error_is_one_sentence(tmp_path: Path) -> None:
    url = str(tmp_path / "a")
    with (
        worker_pool(tmp_path / "pool.log") as flags,
        pytest.raises(UnfinishedError, match="this shard cannot be made") as caught,
    ):
        run_stage(stage(url, 5, raise_in=3), flags)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(1200)
def test_captions_and_images_are_those_of_the_direct_runner(demo: Path, tmp_path: Path) -> None:
    portable = tmp_path / "portable"
    with worker_pool(tmp_path / "pool.log") as flags:
        for command in demo_commands(portable)[:3]:
            subprocess.run([*command, *flags], cwd=ROOT, check=True, capture_output=True)
    ours, theirs = prompts(portable), prompts(demo)
    both = set(ours) & set(theirs)
    assert both
    assert all(ours[ordinal] == theirs[ordinal] for ordinal in both)
    shared = set(images(portable)) & set(images(demo))
    assert shared
    assert all(images(portable)[text] == images(demo)[text] for text in shared)
