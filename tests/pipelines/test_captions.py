from pathlib import Path
from typing import Any

import pytest

from pipelines.captions import (
    CaptionsConfig,
    prompt_source,
    run,
    stage,
    without_effect,
)
from tests.support.paths import PIPELINE_CONFIGS
from transforms.core.config import load_config
from transforms.core.errors import ConfigError, UnfinishedError
from transforms.core.index import read_index
from transforms.core.stages import stage_folder

DEMO = str(PIPELINE_CONFIGS / "demo.yaml")


def config(tmp_path: Path, *overrides: str) -> CaptionsConfig:
    concepts = tmp_path / "concepts.txt"
    if not concepts.exists():
        concepts.write_text("fox\nkettle\n")
    fixed = [f"run={tmp_path / 'run'}", f"concepts={concepts}"]
    return load_config(CaptionsConfig, DEMO, [*fixed, *overrides])


def test_the_demo_config_stands() -> None:
    demo = load_config(CaptionsConfig, DEMO)
    assert (demo.seed, demo.run) == (0, "runs/demo")
    planned = stage(demo)
    assert planned.num_records >= demo.num_captions * demo.captions.oversampling


@pytest.mark.parametrize(
    ("oversampling", "shards"), [("1", 4), ("1.01", 5), ("1.25", 5), ("1.26", 6), ("2", 8)]
)
def test_raw_captions_are_rounded_up_to_whole_shards(
    tmp_path: Path, oversampling: str, shards: int
) -> None:
    planned = stage(config(tmp_path, f"captions.oversampling={oversampling}"))
    assert planned.num_shards == shards
    assert planned.num_records == shards * 160
    why = "" if shards == 4 else f"640 with oversampling {oversampling}"
    assert planned.why_so_many == why


def test_a_run_may_grow_move_and_change_speed_but_nothing_else(tmp_path: Path) -> None:
    digest = stage(config(tmp_path)).fingerprint.digest
    harmless = ["num_captions=1600", "captions.oversampling=3", f"run={tmp_path / 'other'}"]
    harmless += ["engine.max_num_seqs=7", "engine.kv_cache_gib=2", "engine.enforce_eager=false"]
    for override in harmless:
        assert stage(config(tmp_path, override)).fingerprint.digest == digest, override
    for override in [
        "seed=1",
        "captions.sampling.temperature=0.7",
        "captions.filters.max_words=20",
        "captions.prompts.shared_examples=false",
        "captions_per_shard=320",
        "engine.dtype=bfloat16",
        "captions.max_tries=2",
    ]:
        assert stage(config(tmp_path, override)).fingerprint.digest != digest, override
    (tmp_path / "concepts.txt").write_text("fox\nteapot\n")
    assert stage(config(tmp_path)).fingerprint.digest != digest


ANYHOW = [
    "captions.sampling.top_p=0.5",
    "captions.max_tries=2",
    "engine.max_model_len=512",
    "captions.use_backgrounds=run",
]


@pytest.mark.parametrize(
    ("fixed", "harmless"),
    [
        (
            ["captions.variant=IN+h+Places"],
            [
                "model=other",
                "engine.name=openai",
                "captions.prompts.mix.c=1",
                "engine.dtype=bfloat16",
                *ANYHOW,
            ],
        ),
        (["captions.variant=file"], ["model=other", *ANYHOW]),
        (["engine.name=openai"], ["engine.concurrency=3", "engine.base_url=http://other/v1"]),
        (
            ["captions.variant=IN+Places+LLM", "engine.name=openai"],
            ["captions.use_backgrounds=run"],
        ),
    ],
)
def test_what_has_no_effect_is_no_other_output(
    tmp_path: Path, fixed: list[str], harmless: list[str]
) -> None:
    (tmp_path / "given.txt").write_text("A photo of a house\n" * 2_000)
    (tmp_path / "concepts.yaml").write_text(
        "sources: [{source: a, concepts: [{name: fox, hypernym: canine}]},"
        " {source: b, kind: place, concepts: [harbour]}]"
    )
    lists = [f"concepts={tmp_path}/concepts.yaml", f"captions.captions_file={tmp_path}/given.txt"]
    digest = stage(config(tmp_path, *lists, *fixed)).fingerprint.digest
    for override in harmless:
        assert stage(config(tmp_path, *lists, *fixed, override)).fingerprint.digest == digest
    other = config(tmp_path, *lists, *fixed, "captions.filters.max_words=20")
    assert stage(other).fingerprint.digest != digest


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["num_captions=650"], "key 'num_captions' has value 650: expected a multiple of"),
        (["engine.max_model_len=40"], "key 'engine.max_model_len' has value 40"),
        (["captions.oversampling=0.9"], "captions.oversampling"),
        (["engine.device=tpu"], "engine.device"),
        (["engine.concurrency=3"], "unknown key 'engine.concurrency'"),
        (["engine.name=openai", "engine.dtype=float32"], "unknown key 'engine.dtype'"),
        (["engine.name=none"], "key 'engine.name' has value 'none': expected 'vllm', 'openai'"),
        (["captions.filters.min_wrods=2"], "min_words"),
        (["model=package:none"], "'none' is not installed"),
        (["revision=main"], "key 'revision'"),
        (["concepts=nowhere.yaml"], "nowhere.yaml"),
        (["captions.examples=nowhere"], "nowhere/objects.yaml"),
        (["captions.relations=nowhere.yaml"], "nowhere.yaml"),
        (["captions.variant=half"], "'IN+Places+LLM'"),
        (["captions.variant=IN+h+Places"], "at least one place"),
        (["captions.variant=file"], "key 'captions.captions_file' is missing"),
        (["captions.variant=file", "captions.captions_file=nowhere.csv"], "nowhere.csv"),
        (["model=''"], "key 'model' is missing"),
        (["concepts=''"], "key 'concepts' is missing"),
        (["captions.filters.block_list=nowhere.txt"], "nowhere.txt"),
    ],
)
def test_wrong_settings_are_said_in_a_sentence(
    tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        stage(config(tmp_path, *overrides))
    assert sentence in str(error.value)


def test_a_missing_accelerator_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"key .engine\.device. has value .cuda."):
        run(config(tmp_path, "engine.device=cuda"), [])
    assert not Path(stage_folder(str(tmp_path / "run"), "captions-raw").url).exists()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("captions.sampling.temperature=0", "'captions.max_tries'"),
        ("captions.captions_file=given.txt", "'captions.captions_file'"),
    ],
)
def test_settings_without_effect_are_named(tmp_path: Path, override: str, key: str) -> None:
    assert without_effect(config(tmp_path)) == []
    (sentence,) = without_effect(config(tmp_path, override))
    assert key in sentence


def test_settings_without_effect_on_a_variant_are_named(tmp_path: Path) -> None:
    def unused(*overrides: str) -> list[str]:
        return [s.split("'")[1] for s in without_effect(config(tmp_path, *overrides))]

    of_model = ["model", "engine", "captions.sampling"]
    assert unused("captions.variant=IN+h+Places") == of_model
    assert unused("captions.variant=file", "captions.captions_file=a.txt") == [
        "concepts",
        *of_model,
    ]
    places = ["captions.variant=IN+Places+LLM", "captions.use_backgrounds=run"]
    assert unused(*places, "captions.prompts.mix.c=1") == [
        "captions.use_backgrounds",
        "captions.prompts.mix",
    ]


def test_pool_size_needs_pools(tmp_path: Path) -> None:
    pool = ["captions.prompts.num_pool_triples=4"]
    assert without_effect(config(tmp_path, *pool)) == []
    (sentence,) = without_effect(config(tmp_path, *pool, "captions.prompts.shared_examples=false"))
    assert "num_pool_triples" in sentence


def test_variants_change_what_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "concepts.yaml"
    path.write_text(
        "sources:\n- {source: a, concepts: [{name: fox, backgrounds: [den]}, kettle]}\n"
        "- {source: b, kind: place, concepts: [harbour]}\n"
    )
    asked = {}
    for variant in ("full", "IN+Places+LLM", "IN+OurBG+LLM"):
        settings = config(tmp_path, f"concepts={path}", f"captions.variant={variant}")
        source = prompt_source(settings)
        prompts = [source.build(ordinal) for ordinal in range(200)]
        asked[variant] = {(p.concept.name, p.template, p.background) for p in prompts}
    assert len({name for name, _, _ in asked["full"]}) == 3
    assert asked["IN+Places+LLM"] == {(n, "c-background", "harbour") for n in ("fox", "kettle")}
    assert asked["IN+OurBG+LLM"] == {("fox", "c-background", "den"), ("kettle", "c", None)}


def test_captions_of_a_file_need_neither_concepts_nor_a_model(tmp_path: Path) -> None:
    given = tmp_path / "given.txt"
    given.write_text("".join(f"A photo of the house number {i}\n" for i in range(10)))
    settings = [f"run={tmp_path}/run", "num_captions=4", "captions_per_shard=2"]
    settings += ["captions.variant=file", f"captions.captions_file={given}"]
    settings += ["concepts=''", "model=''"]
    run(load_config(CaptionsConfig, DEMO, [*settings, "captions.oversampling=2"]), [])
    index = read_index(stage_folder(f"{tmp_path}/run", "captions-raw").index_url)
    assert index.table["num_samples"].to_pylist() == [2, 2, 2, 2]
    with pytest.raises(ConfigError, match="holds 10 captions, but 12 are asked for"):
        stage(load_config(CaptionsConfig, DEMO, [*settings, "captions.oversampling=3"]))


def test_an_endpoint_that_is_not_there_is_said_in_the_last_line(tmp_path: Path) -> None:
    settings = [
        "engine.name=openai",
        "engine.base_url=http://127.0.0.1:9/v1",
        "engine.max_retries=0",
    ]
    with pytest.raises(UnfinishedError, match=r"^the endpoint http://127.0.0.1:9/v1 cannot be"):
        run(config(tmp_path, *settings, "num_captions=160"), [])
    run_folder = tmp_path / "run" / "captions-raw"
    assert {path.name for path in run_folder.iterdir()} == {"run.yaml", "plan.json"}


def test_an_endpoint_is_known_by_its_name(tmp_path: Path) -> None:
    def identity(*overrides: str) -> Any:
        return stage(config(tmp_path, "engine.name=openai", *overrides)).fingerprint.fields[
            "model_identity"
        ]

    assert identity("model=llama") == identity("model=llama", "engine.base_url=http://other/v1")
    assert identity("model=llama") != identity("model=mistral")


def test_a_limit_of_one_engine_does_not_bind_another(tmp_path: Path) -> None:
    longer = "captions.sampling.max_new_tokens=2000"
    with pytest.raises(ConfigError, match=r"key 'engine\.max_model_len' has value 512"):
        config(tmp_path, longer)
    assert config(tmp_path, longer, "engine.name=openai").captions.sampling.max_new_tokens == 2000
