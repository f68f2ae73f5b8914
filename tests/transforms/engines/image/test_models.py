import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.images import builtin_model
from tests.support.paths import ROOT
from transforms.core.errors import ConfigError
from transforms.engines.image.base import GeneratorConfig
from transforms.engines.image.diffusers import DiffusersConfig
from transforms.engines.image.models import find_image_model, image_model_source
from transforms.engines.model_refs import Model


def find_model(name: str, revision: str | None = None) -> Model:
    return find_image_model(name, revision, builtin_model)


def model_folder(folder: Path, weights: bytes = b"weights") -> Path:
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text("a card")
    return folder


def test_a_folder_is_identified_by_what_is_loaded_and_not_by_its_name(tmp_path: Path) -> None:
    one = model_folder(tmp_path / "one")
    same = model_folder(tmp_path / "same")
    (same / "README.md").write_text("another card")
    other = model_folder(tmp_path / "other", b"weightz")
    renamed = model_folder(tmp_path / "renamed")
    (renamed / "unet").rename(renamed / "vae")
    identities = [find_model(str(folder)).identity for folder in (one, same, other, renamed)]
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3
    assert image_model_source(find_model(str(one))) == str(one)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "builtin:nothing", "builtin:"])
def test_what_does_not_exist_is_one_sentence(name: str) -> None:
    with pytest.raises(ConfigError, match=f"key 'model' has value '{name}'"):
        find_model(name)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a folder that holds a model_index\.json"):
        find_model(str(tmp_path))


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key 'revision'"):
        find_model(str(model_folder(tmp_path / "model")), "main")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a hub cache; the hub cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_hub_id_is_pinned_to_its_commit(hub_cache: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub_cache / "models--owner--name"
    model_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = find_model("owner/name")
    assert found.commit == commit
    assert commit in found.identity
    assert image_model_source(found) == "owner/name"


def test_a_hub_id_that_nobody_knows(hub_cache: Path) -> None:
    with pytest.raises(ConfigError, match="'owner/name': no such folder"):
        find_model("owner/name")


def test_each_worker_finds_a_built_in_model_in_its_own_installation() -> None:
    found = find_model("builtin:tiny-sd")
    pickled = pickle.dumps(found)
    assert str(ROOT).encode() not in pickled, "a path of this machine"
    folder = Path(image_model_source(pickle.loads(pickled)))
    assert (folder / "model_index.json").is_file()
    assert found.identity == find_model(str(folder)).identity


def test_tiny_sd_kept_its_identity_and_its_images_when_its_type_was_corrected(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "tiny_sd"
    shutil.copytree(ROOT / "pipelines" / "data" / "tiny_sd", folder)
    config = folder / "text_encoder" / "config.json"
    first = "files@sha256:3bce85cfe9f595a302cee98f534b8bbc"  # In fingerprints and seeds of runs.
    generator = GeneratorConfig(num_steps=2, size=64, stored_size=64)
    painted = []
    for dtype in ("float32", "float16"):
        config.write_text(config.read_text().replace('"dtype": "float32"', f'"dtype": "{dtype}"'))
        model = find_model(str(folder))
        assert model.identity == first
        engine = DiffusersConfig(batch_size=2).open(model, generator)
        painted.append(engine.paint(["a cat", "an owl in the snow"], [1, 2]).pixels)
    np.testing.assert_array_equal(painted[0], painted[1])
    assert find_model("builtin:tiny-sd").identity == first
    config.write_text(config.read_text() + "\n")
    assert find_model(str(folder)).identity != first
