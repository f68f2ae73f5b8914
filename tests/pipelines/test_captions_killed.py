"""The captions stage as real processes, killed with SIGKILL and started again."""

import hashlib
import itertools
import signal
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from tests.support.openai_endpoint import Answer, Endpoint, serving
from tests.support.paths import PIPELINE_CONFIGS
from tests.support.stage_content import caption_ordinals, check_committed, content
from tests.support.warm_process import WarmProcess
from transforms.core.index import read_index
from transforms.core.stages import stage_folder

pytestmark = pytest.mark.xdist_group("processes")

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


def command(run: Path, *settings: str) -> list[str]:
    fixed = [f"run={run}", f"num_captions={NUM_SHARDS * SIZE}", "captions.oversampling=1"]
    fixed += [f"captions_per_shard={SIZE}", "captions.max_tries=3"]
    return ["captions", DEMO, *fixed, *settings]


def start(run: Path, *settings: str, place: str = "nowhere") -> WarmProcess:
    return WarmProcess("tests.support.kill_at", place, *command(run, *settings))


def asking(endpoint: Endpoint, folder: Path) -> list[str]:
    concepts = folder / "concepts.txt"
    concepts.write_text("\n".join(CONCEPTS))
    return ["engine.name=openai", f"engine.base_url={endpoint.url}", f"concepts={concepts}"]


def folder(run: Path) -> str:
    return stage_folder(str(run), "captions-raw").url


@pytest.mark.slow
def test_killed_anywhere_and_run_again_it_equals_an_undisturbed_run(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    victim: WarmProcess | None = None
    requests = itertools.count(1)

    def deadly(body: dict[str, Any]) -> Answer:
        if victim is not None and next(requests) == SIZE + 3:
            victim.kill()  # During its second shard, or a second try of the first.
        return answer(body)

    with serving(deadly) as endpoint:
        settings = asking(endpoint, tmp_path)
        assert start(undisturbed, *settings).wait() == 0
        victim = start(killed, *settings)
        assert victim.wait(120) == -signal.SIGKILL
        check_committed(folder(killed))
        for what in ("shard", "commit", "index", "_SUCCESS"):
            for moment in ("before", "after"):
                place = f"{moment}:{what}"
                died = start(killed, *settings, place=place)
                assert died.wait() == -signal.SIGKILL, place
                check_committed(folder(killed))
        assert start(killed, *settings).wait() == 0
    assert content(folder(killed)) == content(folder(undisturbed))
    assert caption_ordinals(folder(killed)) == list(range(NUM_SHARDS * SIZE))
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
        assert main(command(undisturbed, *settings)) == 0
        dies_after = len(endpoint.requests) + 3 * SIZE
        capsys.readouterr()
        assert main(command(stopped, *settings)) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "answered 500" in said and "run the same command again" in said
        check_committed(folder(stopped))
        before = content(folder(stopped))
        assert before.items() < content(folder(undisturbed)).items()
        assert any(name.startswith("shards/") for name in before)
        dies_after = 10**9
        assert main(command(stopped, *settings)) == 0
    assert content(folder(stopped)) == content(folder(undisturbed))
