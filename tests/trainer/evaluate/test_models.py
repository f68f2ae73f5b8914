"""What can be scored: checkpoints, exports and models of timm."""

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from tests.support.evaluation import MODEL, save_checkpoint
from trainer.evaluate.features import Extraction, encoder_subject
from trainer.evaluate.models import load_model
from trainer.export import export
from transforms.core.errors import ConfigError

NAME = "test_vit"


def images(count: int, size: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 256, (size, size, 3), np.uint8)) for _ in range(count)
    ]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model(NAME, pretrained=False).state_dict(), path)
    return path


def test_a_model_of_timm_gives_the_features_of_timms_own_call(weights: Path) -> None:
    model = load_model(f"timm:{NAME}@{weights}", "teacher")
    subject = encoder_subject("trained", model.encoder, model.input, Extraction("cpu", 2, 0))
    pictures = images(3, 200)  # Larger than the input of 160, so that they are resized.
    found = subject.extract([png(image) for image in pictures], lambda count: None)

    own = timm.create_model(
        NAME, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, num_classes=0
    ).eval()
    settings = resolve_model_data_config(own)
    transform = create_transform(**{**settings, "interpolation": "bicubic", "crop_pct": 1.0})
    with torch.no_grad():
        expected = own(torch.stack([transform(image) for image in pictures])).numpy()
    assert found.values.shape == expected.shape == (3, own.num_features)
    assert np.allclose(found.values, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_fresh_models_of_timm_follow_from_the_seed(weights: Path) -> None:
    model = load_model(f"timm:{NAME}@{weights}", "teacher")
    first, again, other = (model.fresh(seed).state_dict() for seed in (1, 1, 2))
    name = "patch_embed.proj.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], model.encoder.state_dict()[name])
    assert load_model(f"timm:{NAME}@{weights}", "teacher").digest == model.digest


def test_an_export_gives_the_features_of_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "run", seed=3)
    export(str(checkpoint), str(tmp_path / "export"))
    pictures = [png(image) for image in images(3, MODEL.image_size)]
    found = []
    for reference in (checkpoint, tmp_path / "export"):
        model = load_model(str(reference), "teacher")
        assert model.input.image_size == MODEL.image_size
        subject = encoder_subject("trained", model.encoder, model.input, Extraction("cpu", 2, 0))
        found.append(subject.extract(pictures, lambda count: None).values)
    assert (found[0] == found[1]).all()
    before = load_model(str(tmp_path / "export"), "teacher").digest
    export(str(save_checkpoint(tmp_path / "other", seed=4)), str(tmp_path / "export"))
    assert load_model(str(tmp_path / "export"), "teacher").digest != before


@pytest.mark.parametrize("reference", ["timm:no_such_model", "timm:test_vit@/absent.safetensors"])
def test_models_that_are_not_there(reference: str) -> None:
    with pytest.raises(ConfigError, match=f"model '{reference}' cannot be loaded"):
        load_model(reference, "teacher")
