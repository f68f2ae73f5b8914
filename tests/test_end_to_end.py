"""`make demo` in small: the real vLLM, the real diffusers, the real trainer, the real test sets.

The commands are those of the Makefile, with fewer captions and steps.
"""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipelines.captions import CaptionsConfig, prompt_source
from tests.support.demo import NUM_CAPTIONS, SMALLER, demo_commands, images, prompts, run_demo
from tests.support.paths import PIPELINE_CONFIGS, ROOT
from tests.support.stage_content import caption_ordinals, check_committed, content
from transforms.core import storage
from transforms.core.config import load_config
from transforms.core.index import read_index

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("models")]


def kill_when(command: list[str], committed: Path) -> None:
    """Start a command and kill it with SIGKILL once its first shard is committed."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(committed.glob("commits/*/*.json")):
        time.sleep(0.05)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def check_whole(run: Path, stage: str) -> None:
    """Every planned shard once, and nothing under a final name that the index does not know."""
    index = read_index(str(run / stage / "index.parquet"))
    files = set(storage.list_files(str(run / stage / "shards")))
    assert {path.removeprefix("shards/") for path in index.table["path"].to_pylist()} == files
    assert index.table["shard"].to_pylist() == list(range(len(files)))
    assert (run / stage / "_SUCCESS").exists()


def check_prompts(run: Path) -> None:
    """Check that each planned ordinal became a caption of its prompt, or a dead letter."""
    overrides = [f"run={run}", *SMALLER["pipelines captions"]]
    config = load_config(CaptionsConfig, str(PIPELINE_CONFIGS / "demo.yaml"), overrides)
    planned = caption_ordinals(str(run / "captions-raw"))
    assert planned == list(range(len(planned)))
    assert len(planned) >= NUM_CAPTIONS
    source = prompt_source(config)
    for ordinal, found in prompts(run).items():
        asked = source.build(ordinal)
        concept = asked.concept
        drawn = (concept.name, concept.source, asked.template, asked.background, asked.relation)
        assert found == tuple(map(str, drawn))


def test_ends_with_a_report(demo: Path) -> None:
    for stage in ("captions-raw", "captions", "images"):
        check_whole(demo, stage)
    page = (demo / "report.html").read_text()
    assert "data:image/" in page
    assert not re.search(r"(src|href)=.?https?:|url\(.?https?:|@import", page), (
        "it needs itself only"
    )
    scores = json.loads((demo / "scores/scores.json").read_text())
    assert json.dumps(scores).count("untrained") > 0
    assert len(images(demo)) == NUM_CAPTIONS


def test_run_again_does_nothing(demo: Path) -> None:
    def state() -> dict[str, float]:
        return {str(p): p.stat().st_mtime for p in demo.rglob("*") if p.is_file()}

    before = state()
    started = time.monotonic()
    run_demo(demo)
    assert state() == before
    assert time.monotonic() - started < 60


def test_killed_in_captions_and_in_images_then_gone_on(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    commands = demo_commands(run)
    captions = run / "captions-raw"
    kill_when(commands[0], captions)
    check_committed(str(captions))
    published = content(str(captions))
    for command in commands[:2]:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    check_committed(str(captions))
    assert published.items() <= content(str(captions)).items(), "published files do not change"
    check_prompts(run)
    kill_when(commands[2], run / "images")
    subprocess.run(commands[2], cwd=ROOT, check=True, capture_output=True)
    for stage in ("captions-raw", "captions", "images"):
        check_whole(run, stage)
    ours, theirs = prompts(run), prompts(demo)
    assert all(ours[ordinal] == theirs[ordinal] for ordinal in set(ours) & set(theirs))
    shared = set(images(run)) & set(images(demo))
    assert shared, "on one machine, the same prompts and seeds give the same captions"
    assert all(images(run)[text] == images(demo)[text] for text in shared)
