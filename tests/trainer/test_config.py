"""The config of a training: bounds, help, and keys that are in the fingerprint."""

import pytest
from pydantic import ValidationError

from tests.support.gradients import tiny_config
from tests.support.training_runs import flat
from trainer.config import TrainConfig, data_folder, train_folder
from trainer.data.shard_reader import DataConfig
from transforms.core.config import fingerprint_fields, stored_config
from transforms.core.config_keys import describe


def test_results_and_data_are_in_the_run_unless_data_are_elsewhere() -> None:
    config = TrainConfig(run="gs://bucket/run")
    assert train_folder(config) == "gs://bucket/run/train"
    assert data_folder(config) == "gs://bucket/run/images"
    elsewhere = TrainConfig.model_validate({"run": "here", "data": {"images": "elsewhere"}})
    assert data_folder(elsewhere) == "elsewhere"


@pytest.mark.parametrize("images", [None, "gs://bucket/images"])
def test_a_stored_config_may_name_its_data_by_the_old_key(images: str | None) -> None:
    stored = TrainConfig(run="here").model_dump(mode="json") | {"data": images}
    config = stored_config(TrainConfig, stored, "a checkpoint")
    assert config.data == DataConfig(images=images)


def test_part_of_the_data_is_in_the_fingerprint_if_it_is_chosen() -> None:
    whole, part = (
        fingerprint_fields(TrainConfig.model_validate({"run": "here", "data": data}))
        for data in ({}, {"num_captions": 1000})
    )
    assert part == {**whole, "data.num_captions": 1000}


def test_what_only_changes_speed_or_place_is_not_in_the_fingerprint() -> None:
    config = TrainConfig(run="here")
    free = flat(config.model_dump()).keys() - fingerprint_fields(config).keys()
    whole_sections = ("checkpoint.", "execution.", "monitor.")
    assert {key for key in free if not key.startswith(whole_sections)} == {
        *("data.images", "data.num_captions"),
        *("run", "captions", "device", "num_threads", "accumulation", "log_every"),
        "strict_versions",
        *("objective.contrastive_chunk", "objective.ibot_chunk"),
        *(f"loader.{key}" for key in ("num_workers", "prefetch", "cache_folder", "cache_gib")),
    }


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("loader", "shuffle_shards", 0),
        ("loader", "num_workers", -1),
        ("loader", "prefetch", 0),
        ("optim", "betas", [1, 2]),
        ("optim", "clip_norm", 0),
        ("crops", "local_size", 0),
        ("crops", "num_global", 0),
        ("crops", "global_scale", [0.5, 3]),
        ("crops", "local_scale", [0, 0.5]),
        ("crops", "ratio", [-1, 1]),
        ("photometric", "jitter", 1.5),
        ("model", "patch_size", 0),
        ("model", "num_heads", 0),
        ("objective", "contrastive_chunk", -1),
        ("objective", "masked_images", 1.5),
        ("objective", "temperature", 0),
        ("checkpoint", "every_s", -1),
        ("execution", "timeout_s", 29),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(section: str, key: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        tiny_config("unused", **{section: {key: value}})
    # Pydantic adds the chosen objective to the place of an error.
    places = [[part for part in e["loc"] if part != "contrastive"] for e in caught.value.errors()]
    assert {tuple(place[:2]) for place in places} == {(section, key)}


@pytest.mark.parametrize(
    ("crops", "objective"),
    [
        ({}, {"global_weight": 0, "local_weight": 0, "ibot_weight": 0}),
        ({"num_local": 0}, {"global_weight": 0, "ibot_weight": 0}),
        ({}, {"masked_images": 0}),
        ({}, {"masked_patches": 0}),
    ],
)
def test_a_loss_with_nothing_to_learn_is_refused(
    crops: dict[str, int], objective: dict[str, int]
) -> None:
    with pytest.raises(ValidationError, match="nothing to learn"):
        tiny_config("unused", crops=crops, objective=objective)


@pytest.mark.parametrize("key", ["log_every", "num_threads", "steps"])
def test_counts_are_positive(key: str) -> None:
    with pytest.raises(ValidationError, match="should be greater than 0"):
        tiny_config("unused", **{key: 0})


@pytest.mark.parametrize("value", [2, [2], [[2]], [[3, 2]], [[-1, 2]], [[1, 2, 3]], "2-3"])
def test_steps_to_skip_are_ranges_and_one_sentence_says_so(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        tiny_config("unused", skip_steps=value)
    (error,) = caught.value.errors()
    assert error["loc"] == ("skip_steps",)
    assert "expected ranges [[first,last],...]" in error["msg"]


def test_help_gives_types_without_their_bounds() -> None:
    lines = describe(TrainConfig)
    assert "  optim.betas  (tuple[float, float], default [0.9, 0.999])\n" in lines
    assert "  optim.clip_norm  (float | None, default null)\n" in lines
    assert "  photometric.downsample_sizes  (tuple[int, ...], default [64, 128])\n" in lines


def help_lines() -> list[str]:
    """Return keys and their texts, without the lines that name a choice of sections."""
    return [line for line in describe(TrainConfig).splitlines() if not line.endswith(":")]


def test_every_key_has_help() -> None:
    lines = help_lines()
    keys = [number for number, line in enumerate(lines) if not line.startswith("      ")]
    undescribed = [lines[n] for n in keys if n + 1 in keys or n + 1 == len(lines)]
    assert undescribed == []


@pytest.mark.parametrize("section", ["model", "crops", "photometric", "objective", "optim"])
def test_every_key_of_the_method_says_whose_value_it_has(section: str) -> None:
    """Of the paper, the authors' code or earlier papers; chunks, kinds and tokens are ours."""
    ours = {"kind", "teacher", "contrastive_chunk", "ibot_chunk", "tokenizer"}
    lines = help_lines()
    for key, text in zip(lines[0::2], lines[1::2], strict=True):
        name = key.split()[0]
        if name.startswith(f"{section}.") and name.rpartition(".")[2] not in ours:
            sources = ("paper", "authors", "AugReg", "CLIP", "ViT", "StableRep")
            assert any(source in text for source in sources), name
            assert section != "photometric" or "paper" not in text, "it lists none of the values"
