"""The captions stage as real processes, killed with SIGKILL and started again."""

import hashlib
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.__main__ import main
from pipelines.captions import CaptionsConfig, prompt_source
from tests.support import stage_content
from tests.support.openai_endpoint import Answer, Endpoint, serving
from tests.support.paths import PIPELINE_CONFIGS
from transforms.core.config import load_config
from transforms.core.index import read_index
from transforms.core.shards import read_commit
from transforms.core.stages import stage_folder

DEMO = str(PIPELINE_CONFIGS / "demo.yaml")
NUM_SHARDS, SIZE = 5, 8
CONCEPTS = ("fox", "kettle", "poison", "owl", "pear", "lamp")
LETTERS = "abcdefghijklmnop"


def answer(body: dict[str, Any]) -> Answer:
    """Answer by prompt and seed only: some captions are bad, and poison is refused."""
    concept = body["prompt"].splitlines()[-1].removesuffix(" =>").split(",")[0]
    if concept == "poison":
        return Answer(status=400)
    digest = hashlib.sha256(f"{body['prompt']} {body['seed']}".encode()).digest()
    if digest[0] % 4 == 0:
        return Answer("Something else")
    words = "".join(LETTERS[byte % 16] for byte in digest[1:12])
    return Answer(f" A {concept} on shelf {words}.")


def command(run: Path, *settings: str, place: str = "nowhere") -> list[str]:
    fixed = [f"run={run}", f"num_captions={NUM_SHARDS * SIZE}", "captions.oversampling=1"]
    fixed += [f"captions_per_shard={SIZE}", "captions.max_tries=3"]
    words = ["captions", DEMO, *fixed, *settings]
    return [sys.executable, "-m", "tests.support.kill_at", place, *words]


def asking(endpoint: Endpoint, folder: Path) -> list[str]:
    concepts = folder / "concepts.txt"
    concepts.write_text("\n".join(CONCEPTS))
    return ["engine.name=openai", f"engine.base_url={endpoint.url}", f"concepts={concepts}"]


def content(run: Path) -> dict[str, str]:
    """Return what the captions stage of a run holds that must not depend on how it ran."""
    return stage_content.content(stage_folder(str(run), "captions-raw").url)


def check_whole(run: Path) -> None:
    """Check that all files with final names are readable and match their commit records."""
    folder = stage_folder(str(run), "captions-raw")
    for path in Path(folder.url).rglob("*.parquet"):
        pq.read_table(path)
    for path in Path(folder.url).rglob("*.json"):
        if path.parent.parent.name == "commits":
            record = read_commit(folder, int(path.stem.rpartition("-")[2]))
            data = (Path(folder.url) / record.path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == record.sha256


def ordinals(run: Path) -> list[int]:
    """Return the ordinals of all captions and dead letters, sorted."""
    folder = Path(stage_folder(str(run), "captions-raw").url)
    captions = [pq.read_table(p)["ordinal"].to_pylist() for p in folder.glob("shards/*/*")]
    failures = [pq.read_table(p)["record_id"].to_pylist() for p in folder.glob("failures/*/*")]
    return sorted(int(i) for i in itertools.chain(*captions, *failures))


@pytest.mark.slow
def test_killed_anywhere_and_run_again_it_equals_an_undisturbed_run(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    victim: subprocess.Popen[bytes] | None = None
    requests = itertools.count(1)

    def deadly(body: dict[str, Any]) -> Answer:
        if victim is not None and next(requests) == SIZE + 3:
            victim.kill()  # During its second shard, or a second try of the first.
        return answer(body)

    with serving(deadly) as endpoint:
        settings = asking(endpoint, tmp_path)
        subprocess.run(command(undisturbed, *settings), check=True, stderr=subprocess.DEVNULL)
        victim = subprocess.Popen(command(killed, *settings), stderr=subprocess.DEVNULL)
        assert victim.wait(120) == -signal.SIGKILL
        check_whole(killed)
        for what in ("shard", "commit", "index", "_SUCCESS"):
            for moment in ("before", "after"):
                place = f"{moment}:{what}"
                died = subprocess.run(
                    command(killed, *settings, place=place), stderr=subprocess.DEVNULL
                )
                assert died.returncode == -signal.SIGKILL, place
                check_whole(killed)
        subprocess.run(command(killed, *settings), check=True, stderr=subprocess.DEVNULL)
    assert content(killed) == content(undisturbed)
    assert ordinals(killed) == list(range(NUM_SHARDS * SIZE))
    index = read_index(stage_folder(str(killed), "captions-raw").index_url).table
    assert 0 < sum(index["num_failures"].to_pylist()) < NUM_SHARDS * SIZE / 2


def test_an_engine_that_dies_stops_the_run_and_leaves_what_is_committed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, stopped = tmp_path / "a", tmp_path / "b"
    dies_after = 10**9

    def dying(body: dict[str, Any]) -> Answer:
        return answer(body) if len(endpoint.requests) <= dies_after else Answer(status=500)

    with serving(dying) as endpoint:
        settings = [*asking(endpoint, tmp_path), "engine.max_retries=0"]
        assert main(command(undisturbed, *settings)[4:]) == 0
        dies_after = len(endpoint.requests) + 3 * SIZE
        capsys.readouterr()
        assert main(command(stopped, *settings)[4:]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "answered 500" in said and "run the same command again" in said
        check_whole(stopped)
        before = content(stopped)
        assert before.items() < content(undisturbed).items()
        assert any(name.startswith("shards/") for name in before)
        dies_after = 10**9
        assert main(command(stopped, *settings)[4:]) == 0
    assert content(stopped) == content(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_while_the_built_in_model_writes(tmp_path: Path) -> None:
    run, size = tmp_path / "run", 12
    settings = [f"captions_per_shard={size}", f"num_captions={3 * size}", "captions.max_tries=2"]
    victim = subprocess.Popen(command(run, *settings), stderr=subprocess.DEVNULL)
    commits = Path(stage_folder(str(run), "captions-raw").url) / "commits"
    while victim.poll() is None and not list(commits.glob("*/*.json")):
        time.sleep(0.05)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    check_whole(run)
    first = content(run)
    subprocess.run(command(run, *settings), check=True, stderr=subprocess.DEVNULL)
    check_whole(run)
    assert first.items() <= content(run).items(), "published files do not change"
    assert ordinals(run) == list(range(3 * size))
    prompts = prompt_source(load_config(CaptionsConfig, DEMO, settings))
    for path in Path(stage_folder(str(run), "captions-raw").url).glob("shards/*/*"):
        for row in pq.read_table(path).to_pylist():
            asked = prompts.build(row["ordinal"])
            drawn = (asked.concept.name, asked.template, asked.background, asked.relation)
            assert drawn == tuple(
                row[name] for name in ("concept", "template", "background", "relation")
            )
