"""Naming against a loop, and on pictures whose names are known."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.evaluation import read_scores, save_job
from tests.support.image_shards import write_images
from trainer.evaluate.__main__ import main
from trainer.evaluate.protocols import naming
from trainer.evaluate.protocols.naming import NamingConfig, name_pictures

CONCEPTS = ("cat", "dog", "tree")  # As `concept_of` gives them to samples in turn.


def ranking(
    keys: np.ndarray, concepts: np.ndarray, query: np.ndarray, config: NamingConfig
) -> list[tuple[int, float]]:
    """Return (concept, votes) from the most votes down, of those that have any."""
    cosine = [float(query @ k / np.linalg.norm(query) / np.linalg.norm(k)) for k in keys]
    nearest = sorted(range(len(keys)), key=lambda i: -cosine[i])[: config.num_neighbours]
    votes: dict[int, float] = {}
    for i in nearest:
        own = int(concepts[i])
        votes[own] = votes.get(own, 0) + math.exp(cosine[i] / config.temperature)
    return sorted(votes.items(), key=lambda vote: -vote[1])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_keys=st.integers(6, 40),
    num_neighbours=st.integers(1, 45),
    grouped=st.booleans(),
)
def test_names_what_a_loop_votes_for(
    seed: int, num_keys: int, num_neighbours: int, grouped: bool
) -> None:
    generator = np.random.default_rng(seed)
    keys = generator.normal(size=(num_keys, 6)).astype(np.float32)
    concepts, labels = generator.integers(0, 9, num_keys), generator.integers(0, 9, 7)
    queries = generator.normal(size=(7, 6)).astype(np.float32)
    of_keys, own = generator.integers(0, 3, num_keys), generator.integers(0, 3, 7)
    config = NamingConfig(num_neighbours=num_neighbours, temperature=0.3)
    groups = (of_keys, own) if grouped else None
    found = name_pictures(keys, concepts, queries, labels, config, groups)
    for number, query in enumerate(queries.astype(np.float64)):
        allowed = of_keys != own[number] if grouped else np.ones(num_keys, bool)
        order = ranking(keys[allowed].astype(np.float64), concepts[allowed], query, config)
        names = [concept for concept, _ in order]
        assert found.first[number] == (names[:1] == [labels[number]])
        assert found.five[number] == (labels[number] in names[:5])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    keys, concepts = generator.normal(size=(50, 8)).astype(np.float32), np.arange(50) % 7
    queries, labels = generator.normal(size=(20, 8)).astype(np.float32), np.arange(20) % 7
    groups = np.arange(50) // 2, np.arange(20)
    whole = name_pictures(keys, concepts, queries, labels, NamingConfig(), groups)
    monkeypatch.setattr(naming, "QUERIES_PER_CHUNK", 3)
    parts = name_pictures(keys, concepts, queries, labels, NamingConfig(), groups)
    assert (parts.first == whole.first).all() and (parts.five == whole.five).all()


def test_nothing_is_named_if_all_are_of_the_own_group() -> None:
    keys, concepts = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    group = np.zeros(3, np.int64)
    config = NamingConfig(num_neighbours=2)
    found = name_pictures(keys, concepts, keys, concepts, config, (group, group))
    assert not found.first.any() and not found.five.any()


def test_permuted_concepts_are_chance() -> None:
    generator = np.random.default_rng(2)
    keys = generator.normal(size=(2000, 16)).astype(np.float32)
    concepts = np.arange(2000) % 20
    config = NamingConfig(num_neighbours=1)
    own = name_pictures(keys, concepts, keys, concepts, config)
    other = name_pictures(keys, generator.permutation(concepts), keys, concepts, config)
    assert own.first.all()
    assert abs(other.first.mean() - 1 / 20) < 4 * math.sqrt(0.05 * 0.95 / 2000)


def paint(sample: int, number: int) -> bytes:
    """Return a picture that is bright where its concept says, with noise."""
    generator = np.random.default_rng([sample, number])
    pixels = generator.normal(60, 10, (24, 24, 3))
    part = 8 * (sample % 3)
    pixels[part : part + 8] += 150
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def save_copies(root: Path, names: tuple[str, ...] = CONCEPTS) -> Path:
    """Write copies of generated images into folders of their concepts, under some names."""
    for split, samples in {"train": range(6), "val": range(6, 9), "test": range(9, 12)}.items():
        for sample in samples:
            folder = root / split / names[sample % 3]
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(2):
                (folder / f"{sample}-{number}.png").write_bytes(paint(sample, number))
    return root


@pytest.fixture
def job(tmp_path: Path) -> tuple[Path, Path]:
    """Return a run of images and a checkpoint, and the config of naming copies of the images."""
    write_images(tmp_path / "run" / "images", paint=paint)
    copies = save_copies(tmp_path / "copies")
    settings = {"num_neighbours": 1, "min_things": 3}
    return save_job(tmp_path, [f"folder:{copies}"], naming=settings)


def rows(run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["metric"], row["encoder"]): row for row in read_scores(run)}


def test_copies_of_generated_images_are_named_without_a_mistake(
    job: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = job
    assert main(["naming", str(path)]) == 0
    found = rows(run)
    encoders = ("trained", "untrained", "pixels")
    assert found.keys() == {(m, e) for m in ("top-1", "top-5") for e in encoders}
    for (metric, encoder), row in found.items():
        assert row["value"] == 100
        assert row["interval"] == [100, 100]
        assert (row["num_test"], row["num_train"], row["num_classes"]) == (6, 24, 3)
        assert row["chance"] == pytest.approx(100 if metric == "top-5" else 100 / 3)
        assert len(row["details"]) == (2 if encoder == "untrained" else 1)
        for details in row["details"]:
            assert (details["validation"], details["num_validation"]) == (100, 18)
    assert found["top-1", "pixels"]["details"][0]["generated"] == 100, "their concepts differ"
    output = capsys.readouterr().out
    assert "top-1" in output and "top-5" in output
    before = (run / "scores" / "naming-copies.json").stat().st_mtime_ns
    assert main(["naming", str(path)]) == 0
    assert "Scored already:" in capsys.readouterr().out
    write_images(run / "images-2", paint=lambda sample, number: paint(sample + 1, number))
    assert main(["naming", str(path), f"naming.images={run}/images-2"]) == 0
    assert (run / "scores" / "naming-copies.json").stat().st_mtime_ns > before
    assert rows(run)["top-1", "pixels"]["value"] == 0, "each concept's images are the next one's"


def test_things_that_are_no_concepts_are_left_out(job: tuple[Path, Path], tmp_path: Path) -> None:
    run, path = job
    other = save_copies(tmp_path / "other", ("Cat", "anvil", "tree"))
    sets = f"datasets=[folder:{other}]"
    assert main(["naming", str(path), sets, "naming.min_things=2"]) == 0
    assert {row["num_test"] for row in rows(run).values()} == {4}
    assert main(["naming", str(path), sets, "naming.min_things=3"]) == 0
    assert not rows(run)


def test_damaged_pictures_are_left_out(job: tuple[Path, Path], tmp_path: Path) -> None:
    run, path = job
    (tmp_path / "copies" / "test" / "cat" / "9-0.png").write_bytes(b"broken")
    images = write_images(run / "broken", paint=paint, broken=(0, 10))
    assert main(["naming", str(path), f"naming.images={images.url}"]) == 0
    row = rows(run)["top-1", "pixels"]
    assert (row["num_test"], row["num_train"], row["value"]) == (5, 22, 100)
    assert len(row["unreadable"]) == 1 and "cat/9-0.png" in row["unreadable"][0]


def test_without_images_all_does_the_rest_and_says_why(
    job: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, path = job
    absent = f"naming.images={tmp_path}/none"
    assert main(["all", str(path), absent, "logistic.num_strengths=2"]) == 0
    said = f"naming is absent: {tmp_path}/none holds no complete images stage"
    assert said in capsys.readouterr().out
    assert {row["protocol"] for row in read_scores(run)} == {"knn", "logistic", "fewshot"}
    assert main(["naming", str(path), absent]) == 1
    assert "make it with `python -m pipelines images`" in capsys.readouterr().err
