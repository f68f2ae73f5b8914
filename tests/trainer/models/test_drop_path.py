"""Drop path: what is dropped and how often; not in evaluation mode, not in state dicts."""

from typing import Any

import pytest
import torch

from trainer.models.drop_path import DropPath
from trainer.models.vit import EncoderConfig, build_encoder

TINY = EncoderConfig(image_size=16, patch_size=8, width=12, depth=5, num_heads=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_whole_images_are_dropped_and_the_mean_stays(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    drop = DropPath(0.4)
    branch = torch.ones(20_000, 3, 2, dtype=dtype)
    dropped = drop(branch)
    assert dropped.dtype == dtype
    assert (dropped == dropped[:, :1, :1]).all(), "an image is dropped as a whole"
    assert (dropped == 0)[:, 0, 0].float().mean().item() == pytest.approx(0.4, abs=0.015)
    assert dropped.double().mean().item() == pytest.approx(1.0, abs=0.03)


def test_evaluation_drops_nothing() -> None:
    branch = torch.randn(4, 3, 2)
    assert torch.equal(DropPath(0.9).eval()(branch), branch)


def test_rates_grow_from_nothing_as_timms_do() -> None:
    from timm.models.vision_transformer import VisionTransformer

    from trainer.models.vit import architecture

    ours: Any = build_encoder(TINY, seed=0, drop_path=0.4)
    theirs: Any = VisionTransformer(**architecture(TINY), drop_path_rate=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in theirs.blocks]
    for block, rate in zip(ours.blocks, rates, strict=True):
        assert float(block.drop_path1.keep) == pytest.approx(1 - rate)
        assert float(block.drop_path2.keep) == pytest.approx(1 - rate)
    branch = torch.randn(50, 3, 2)
    assert torch.equal(ours.blocks[0].drop_path1(branch), branch)


def test_weights_and_their_names_are_those_without_drop_path() -> None:
    with_it, without = build_encoder(TINY, 0, drop_path=0.4), build_encoder(TINY, 0)
    values = with_it.state_dict()
    assert list(values) == list(without.state_dict())
    assert all(torch.equal(value, values[name]) for name, value in without.state_dict().items())
