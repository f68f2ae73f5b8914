"""Supervised and CLIP: losses against the textbook, sums over micro-batches and ranks, errors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from tests.support.gradients import (
    assert_same,
    gradients_of_ranks,
    step_batch,
    step_gradients,
    tiny_config,
)
from tests.support.image_shards import concept_of, text_of, write_image_captions, write_images
from trainer import distributed
from trainer.data.batch import Batch
from trainer.models.text_encoder import tokenize
from trainer.objectives import clip
from trainer.objectives.clip import ImageText
from trainer.objectives.registry import build_networks, build_objective, objective_of
from trainer.objectives.supervised import Classifier, concept_labels
from trainer.training.session import open_samples
from transforms.core.errors import ConfigError, DamagedFileError, MissingFileError, StorageError
from transforms.core.index import write_index
from transforms.core.seeding import caption_id
from transforms.core.shards import file_sha256, read_commit
from transforms.core.stages import stage_folder

PLAIN: dict[str, Any] = {"crops": {"num_local": 0}, "model": {"drop_path": 0.0}}
TEXT = {"context": 24, "width": 8, "depth": 2, "num_heads": 2, "out": 6}
SUPERVISED = {"kind": "supervised"}
STABLEREP = {"teacher": False, "ibot_weight": 0.0}
CLIP = {"kind": "clip", "text": TEXT}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    write_image_captions(tmp_path / "captions")
    return tmp_path


def ordinals(batch: Batch) -> list[int]:
    known = {int(caption_id(text_of(n)), 16): n for n in range(12)}
    return [known[number % (1 << 64)] for number in batch.caption_ids.tolist()]


def test_supervised_is_the_cross_entropy_of_the_concept(run: Path) -> None:
    config = tiny_config(run, **PLAIN, objective=SUPERVISED)
    student, _ = build_networks(config)
    assert isinstance(student, Classifier)
    assert student.classes.out_features == 3
    batch = step_batch(config, 0)
    objective = build_objective(config, student, None)
    images = objective._augment(batch.crops.global_pixels, batch.crops.global_draws)
    logits = student(images).logits
    labels = [["cat", "dog", "tree"].index(concept_of(n)) for n in ordinals(batch)]
    expected = functional.cross_entropy(logits, torch.tensor(labels).repeat_interleave(2))
    torch.testing.assert_close(objective.backward(batch, 0)["loss"], expected.detach())


def test_supervised_micro_batches_have_the_gradient_of_the_whole(run: Path) -> None:
    config = tiny_config(run, **PLAIN, objective=SUPERVISED)
    parts = config.model_copy(update={"accumulation": 2})
    assert_same(step_gradients(config, 0), step_gradients(parts, 0))


def test_clip_is_the_symmetric_cross_entropy_of_one_image_and_its_text(run: Path) -> None:
    config = tiny_config(run, **PLAIN, objective=CLIP)
    student, _ = build_networks(config)
    assert isinstance(student, ImageText)
    batch = step_batch(config, 0)
    numbers = ordinals(batch)
    assert len(batch.crops.global_pixels) == 4, "one image of each caption"
    expected_tokens = [tokenize(text_of(n), clip.CLIP.settings_of(config).text) for n in numbers]
    assert torch.equal(batch.targets, torch.stack(expected_tokens))
    objective = build_objective(config, student, None)
    images = objective._augment(batch.crops.global_pixels, batch.crops.global_draws)
    pairs = student(images, batch.targets)
    assert pairs.temperature.item() == pytest.approx(0.07)
    unit = functional.normalize
    logits = unit(pairs.images, dim=1) @ unit(pairs.texts, dim=1).T / 0.07
    diagonal = torch.arange(4)
    of_image = functional.cross_entropy(logits, diagonal).detach()
    of_text = functional.cross_entropy(logits.T, diagonal).detach()
    terms = objective.backward(batch, 0)
    torch.testing.assert_close(terms["image"], of_image)
    torch.testing.assert_close(terms["text"], of_text)
    torch.testing.assert_close(terms["loss"], (of_image + of_text) / 2)
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())


@pytest.mark.parametrize("objective", [CLIP, STABLEREP], ids=["clip", "stablerep"])
def test_keys_with_a_gradient_are_gathered_in_float32(
    run: Path, monkeypatch: pytest.MonkeyPatch, objective: dict[str, Any]
) -> None:
    """Otherwise the gradients of the ranks would be added in bfloat16."""
    gathered: list[torch.dtype] = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.requires_grad:
            gathered.append(tensor.dtype)
        return tensor

    monkeypatch.setattr(distributed, "gather", record)
    config = tiny_config(run, **PLAIN, objective=objective, precision="bf16")
    student, _ = build_networks(config)
    build_objective(config, student, None).backward(step_batch(config, 0), 0)
    assert gathered
    assert set(gathered) == {torch.float32}


@pytest.mark.parametrize("objective", [{}, SUPERVISED, CLIP], ids=["synclr", "supervised", "clip"])
def test_losses_of_networks_in_bfloat16_are_float32(run: Path, objective: dict[str, Any]) -> None:
    config = tiny_config(run, **PLAIN, objective=objective, precision="bf16")
    terms = build_objective(config, *build_networks(config)).backward(step_batch(config, 0), 0)
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_clip_takes_another_image_of_a_caption_in_some_other_epoch(run: Path) -> None:
    config = tiny_config(run, **PLAIN, objective=CLIP)
    samples = open_samples(config)
    chosen = {tuple(samples._chosen_images(epoch, 5)) for epoch in range(20)}
    assert chosen == {(0,), (1,)}


@pytest.mark.xdist_group("processes")
def test_two_ranks_are_one_process(run: Path) -> None:
    objectives: list[dict[str, Any]] = [SUPERVISED, CLIP, {"kind": "augreg"}]
    configs = [tiny_config(run, **PLAIN, objective=objective) for objective in objectives]
    steps = [(config, 1) for config in configs]
    expected = [step_gradients(*step) for step in steps]
    for results in gradients_of_ranks(steps, 2, run):
        for one, several in zip(expected, results, strict=True):
            assert_same(one, several)


def test_without_the_captions_there_are_no_concepts(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **PLAIN, objective=SUPERVISED)
    with pytest.raises(ConfigError, match=r"captions \(key captions, or run\) holds no stage"):
        objective_of(config).target_reader(config)


def test_labels_from_another_stage_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(key captions, or run\) holds shards/.*\.tar"):
        concept_labels(str(run / "images"))


@pytest.mark.parametrize("change", ["other rows", "a flipped bit", "cut off", "gone"])
def test_labels_from_a_damaged_shard_are_refused(run: Path, change: str) -> None:
    """Also if Parquet can read it: other concepts would give other labels."""
    (shard,) = (run / "captions" / "shards").rglob("*.parquet")
    content = bytearray(shard.read_bytes())
    if change == "other rows":
        table = pq.read_table(shard)
        pq.write_table(table.slice(0, 5), shard)
    elif change == "a flipped bit":
        content[len(content) // 3] ^= 1
        shard.write_bytes(content)
    elif change == "cut off":
        shard.write_bytes(content[:-1])
    else:
        shard.unlink()
    error: type[Exception] = MissingFileError if change == "gone" else DamagedFileError
    with pytest.raises(error, match=r"captions-000000\.parquet(: there is no| is damaged: its)"):
        concept_labels(str(run / "captions"))


def test_captions_without_the_column_concept_are_refused(run: Path) -> None:
    folder = stage_folder(str(run), "captions")
    path = folder.shard_url(0)
    pq.write_table(pa.table({"text": ["a cat"]}), path)
    record = replace(read_commit(folder, 0), sha256=file_sha256(path))
    write_index(folder, [record], {})
    with pytest.raises(DamagedFileError, match=r"shard .*captions-000000\.parquet is damaged"):
        concept_labels(folder.url)


def test_captions_of_one_concept_are_refused(tmp_path: Path) -> None:
    """Captions from a file have no concepts: the loss would be 0 from the first step on."""
    write_image_captions(tmp_path / "captions", concept=lambda _: "")
    with pytest.raises(ConfigError, match=r"captions, or run\) have the concepts \[''\] alone"):
        concept_labels(str(tmp_path / "captions"))


def test_a_concept_that_the_captions_lack_stops_with_a_sentence(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    write_image_captions(tmp_path / "captions", size=2)
    assert concept_labels(str(tmp_path / "captions")) == {"cat": 0, "dog": 1}
    config = tiny_config(tmp_path, **PLAIN, objective=SUPERVISED, captions_per_batch=12)
    with pytest.raises(StorageError, match="is 'tree': expected one of the 2 of the run"):
        step_batch(config, 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective": {"kind": "clip", "teacher": True}}, "has no teacher"),
        ({"objective": {"kind": "clip", "ibot_weight": 1}}, r"clip\.ibot_weight"),
        ({"objective": CLIP}, r"crops\.num_local is 1: expected 0"),
        ({"objective": CLIP, "crops": {"num_local": 0, "num_global": 2}}, "num_global is 2"),
        ({**PLAIN, "objective": CLIP, "accumulation": 2}, "accumulation is 2: expected 1"),
        ({**PLAIN, "objective": STABLEREP, "accumulation": 2}, "or objective.teacher=true"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny_config("unused", **changes)
