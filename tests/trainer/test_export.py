"""An exported encoder is a timm model with the same features."""

import io
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.support.checkpoints import note_readings, tiny_state
from trainer.checkpoints.files import (
    checkpoints_folder,
    find_checkpoint,
    load_encoder,
    save_checkpoint,
)
from trainer.evaluate.features import load_square
from trainer.export import main, timm_config
from trainer.models.vit import EncoderConfig
from transforms.core import storage


def test_timm_loads_it_with_equal_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tiny_state(5), checkpoints_folder(str(tmp_path / "train")))
    out = tmp_path / "exported"
    assert main([str(tmp_path), str(out)]) == 0
    assert "step-000000005.pt" in capsys.readouterr().out
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with find_checkpoint(str(tmp_path)) as found:
        encoder, config = load_encoder(found)
    for side in (16, 8):
        images = torch.randn(3, 3, side, side)
        with torch.inference_mode():
            tokens = encoder.forward_features(images)  # type: ignore[operator]
            assert torch.equal(model.forward_features(images), tokens)
            assert torch.equal(model(images), tokens[:, 0])
    assert tuple(model.pretrained_cfg["mean"]) == config.mean
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 16, 16)


def test_timms_own_transform_is_what_features_are_computed_from(tmp_path: Path) -> None:
    save_checkpoint(tiny_state(), str(tmp_path))
    out = tmp_path / "exported"
    assert main([str(tmp_path), str(out)]) == 0
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    pixels = np.random.default_rng(0).integers(0, 256, size=(32, 48, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    config = EncoderConfig()
    square = np.asarray(load_square(buffer.getvalue(), 16)) / 255
    expected = torch.from_numpy((square - config.mean) / config.std).permute(2, 0, 1).float()
    torch.testing.assert_close(transform(Image.fromarray(pixels)), expected)


def test_other_features_are_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tiny_state(), str(tmp_path))
    create = timm.create_model

    def other(name: str, pretrained: bool) -> torch.nn.Module:
        return create(name, pretrained=False)

    monkeypatch.setattr(timm, "create_model", other)
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "other features" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_export_goes_from_and_to_any_storage_and_reads_once(
    any_storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tiny_state(), any_storage)
    readings = note_readings(monkeypatch)
    assert main([any_storage, f"{any_storage}/exported"]) == 0
    fetched = [] if storage.is_local(any_storage) else ["download"]
    assert readings == [*fetched, "_check_sums"]
    assert set(storage.list_files(f"{any_storage}/exported")) == {
        "config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_weights_are_those_that_are_asked_for(
    which: Literal["student", "teacher"], tmp_path: Path
) -> None:
    state = tiny_state()
    for value in state["student"].values():
        value += 0.5
    save_checkpoint(state, str(tmp_path))
    out = tmp_path / "out"
    assert main([str(tmp_path), str(out), f"--which={which}"]) == 0
    weights = timm.create_model(f"local-dir:{out}", pretrained=True).state_dict()
    wanted = {f"encoder.{name}" for name in weights}
    assert wanted == {name for name in state[which] if name.startswith("encoder.")}
    for name, value in weights.items():
        assert torch.equal(value, state[which][f"encoder.{name}"]), name


def test_nobody_is_called_the_teacher_of_a_training_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective = {"teacher": False, "ibot_weight": 0.0}
    save_checkpoint(tiny_state(objective=objective, crops={"num_local": 0}), str(tmp_path))
    assert main([str(tmp_path), str(tmp_path / "out")]) == 0
    assert "teacher" not in capsys.readouterr().out


def test_the_config_is_json_for_the_papers_models() -> None:
    large = EncoderConfig(patch_size=14, width=1024, depth=24, num_heads=16)
    text = json.dumps(timm_config(large))
    assert json.loads(text)["model_args"]["embed_dim"] == 1024


def test_nothing_to_export_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "broken.pt").write_bytes(b"x")
    assert main([str(tmp_path / "broken.pt"), str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
