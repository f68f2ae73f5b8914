"""`OpenAIEngine` against vLLM's own server with the built-in model, on the CPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.soak.servers import vllm_server
from pipelines.__main__ import main
from tests.support.paths import PIPELINE_CONFIGS
from tests.support.stage_content import content
from transforms.core.parquet_shards import CAPTION_SHARDS
from transforms.engines.text.base import EngineError, SamplingConfig
from transforms.engines.text.openai import OpenAIConfig, OpenAIEngine

pytestmark = [pytest.mark.xdist_group("models"), pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLES = """Describe a picture of each thing in one sentence.
pear => Three green pears in a row, the last one with a single leaf still on its stem.
lantern => A paper lantern glows warm yellow against a dark wooden wall.
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of the API of a server that is started as docs/operate.md says."""
    with vllm_server(tmp_path_factory.mktemp("server") / "log.txt") as url:
        yield f"{url}/v1"


def engine(server: str, model: str = "smollm2") -> OpenAIEngine:
    config = OpenAIConfig(base_url=server, concurrency=8, max_retries=1)
    return OpenAIEngine(model, config, SamplingConfig(max_new_tokens=24))


def test_completions_are_those_of_their_prompts_and_seeds(server: str) -> None:
    prompts = [f"{EXAMPLES}{name} =>" for name in ("cat", "house", "boat", "cat")]
    prompts.append("too long " * 300)
    seeds = [1, 2**63 - 1, 0, 1, 2]
    *written, refused = engine(server).complete(prompts, seeds)
    assert refused.error is not None and "maximum context length" in refused.error
    assert all(c.error is None and 0 < c.num_tokens <= 24 for c in written)
    assert all(c.text.strip() and "\n" not in c.text for c in written)
    assert len({c.text for c in written}) > 1
    alone = [engine(server).complete([prompts[0]], [seed])[0].text for seed in (1, 1, 3, 4)]
    assert alone[0] == alone[1], "a seed gives the same text"
    assert len(set(alone)) > 1, "another seed gives another one"


def test_a_model_that_is_not_served_is_one_sentence(server: str) -> None:
    with pytest.raises(EngineError, match=r"answered 404 .*`llama` does not exist.*'model'"):
        engine(server, "llama").complete(["A red apple on a"], [0])


def test_a_stage_runs_to_its_end(server: str, tmp_path: Path) -> None:
    settings = [
        *(f"run={tmp_path / 'run'}", "num_captions=8", "captions_per_shard=4"),
        *("engine.name=openai", f"engine.base_url={server}", "model=smollm2"),
        *("captions.oversampling=1", "captions.sampling.max_new_tokens=24"),
    ]
    command = ["captions", str(PIPELINE_CONFIGS / "demo.yaml"), *settings]
    assert main(command) == 0
    written = content(f"{tmp_path}/run/captions-raw")
    shards = sorted((tmp_path / "run" / "captions-raw" / "shards").rglob("*.parquet"))
    texts = [row.text for shard in shards for row in CAPTION_SHARDS.read(str(shard))]
    assert len(set(texts)) >= 4
    assert main(command) == 0
    assert content(f"{tmp_path}/run/captions-raw") == written
    assert main(["verify", str(tmp_path / "run")]) == 0
