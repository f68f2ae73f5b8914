"""Drop path: what is left out and how often; not in evaluation mode, not in state dicts."""

from typing import Any

import pytest
import torch

from trainer.models.drop_path import DropPath, image_seeds
from trainer.models.vit import EncoderConfig, build_encoder, encode

TINY = EncoderConfig(image_size=16, patch_size=8, width=12, depth=5, num_heads=2)


def test_draws_have_the_rates_of_timm_and_keep_the_mean() -> None:
    from timm.models.vision_transformer import VisionTransformer

    from trainer.models.vit import architecture

    theirs: Any = VisionTransformer(**architecture(TINY), drop_path_rate=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in theirs.blocks]
    factors = DropPath(5, 0.4)(image_seeds(torch.arange(40_000), 7))
    assert factors.shape == (5, 2, 40_000)
    for of_block, rate in zip(factors, rates, strict=True):
        for of_branch in of_block:
            assert of_branch.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)][rate == 0 :])
            assert (of_branch == 0).double().mean().item() == pytest.approx(rate, abs=0.01)
            assert of_branch.double().mean().item() == pytest.approx(1.0, abs=0.02)


def test_draws_of_branches_images_and_keys_are_independent() -> None:
    """Correlations of 0/1 draws are those of chance: five standard deviations is 0.025."""
    numbers = torch.arange(40_000)
    drop = DropPath(6, 0.5)
    rows = [drop(image_seeds(numbers, 7)), drop(image_seeds(numbers, 8))]
    shifted = [drop(image_seeds(numbers + by, 7)) for by in (1, 4, 16, 1 << 32, 3 << 40)]
    draws = torch.cat([(row[1:] > 0).double().flatten(0, 1) for row in rows + shifted])
    correlations = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlations.abs().max() < 0.025


def test_no_two_images_of_a_step_share_their_seed() -> None:
    numbers = torch.arange(1 << 32, (1 << 32) + 200_000)
    seeds = image_seeds(numbers, 3, "drop path", "global")
    assert len(seeds.unique()) == len(seeds)
    assert seeds.min() >= 0
    assert seeds.max() < 1 << 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_whole_branches_of_an_image_are_left_out(dtype: torch.dtype) -> None:
    """The output is that of the image alone, in any batch; its attention branch may be dropped."""
    encoder: Any = build_encoder(TINY, 0)
    block = encoder.to(dtype).blocks[1]
    tokens = torch.randn(3, 5, 12).to(dtype)
    factors = torch.tensor([[0.0, 1.25, 0.0], [0.0, 0.0, 1.25]])
    result = block(tokens, factors)
    assert result.dtype == dtype
    assert torch.equal(result[0], tokens[0])
    attended = tokens + 1.25 * block.attn(block.norm1(tokens))
    transformed = tokens + 1.25 * block.mlp(block.norm2(tokens))
    torch.testing.assert_close(result[1], attended[1])
    torch.testing.assert_close(result[2], transformed[2])
    torch.testing.assert_close(block(tokens, torch.ones(2, 3)), block(tokens))


def test_only_training_leaves_branches_out() -> None:
    encoder: Any = build_encoder(TINY, 0, drop_path=0.9)
    images = torch.randn(4, 3, 16, 16)
    seeds = image_seeds(torch.arange(4), 0)
    dropped = encode(encoder, images, seeds=seeds)
    assert torch.equal(dropped[2:], encode(encoder, images[2:], seeds=seeds[2:]))
    with pytest.raises(AssertionError, match="drop path needs the seeds"):
        encode(encoder, images)
    whole = encode(encoder.eval(), images, seeds=seeds)
    assert torch.equal(whole, encoder.forward_features(images))
    assert not torch.allclose(whole, dropped)


def test_weights_and_their_names_are_those_without_drop_path() -> None:
    with_it, without = build_encoder(TINY, 0, drop_path=0.4), build_encoder(TINY, 0)
    values = with_it.state_dict()
    assert list(values) == list(without.state_dict())
    assert all(torch.equal(value, values[name]) for name, value in without.state_dict().items())
