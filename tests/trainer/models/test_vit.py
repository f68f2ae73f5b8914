"""The encoder: shapes, seeds, and hidden patches that have no effect."""

from typing import Any

import pytest
import torch

from trainer.models.vit import EncoderConfig, build_encoder, encode, use_plain_attention

TINY = EncoderConfig(image_size=32, patch_size=8, width=24, depth=2, num_heads=3)


def test_tokens_of_global_and_local_crops() -> None:
    encoder: Any = build_encoder(TINY, seed=0)
    assert encoder.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 17, 24)
    assert encoder.forward_features(torch.randn(2, 3, 16, 16)).shape == (2, 5, 24)
    assert TINY.num_patches == 16


def test_the_defaults_are_vit_b_16() -> None:
    encoder: Any = build_encoder(EncoderConfig(), seed=0)
    assert sum(p.numel() for p in encoder.parameters()) == 85_798_656
    assert not any("ls1" in name or "gamma" in name for name, _ in encoder.named_parameters())


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_encoder(TINY, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = build_encoder(TINY, seed=3).state_dict()
    other = build_encoder(TINY, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])


def test_hidden_patches_do_not_show() -> None:
    encoder: Any = build_encoder(TINY, seed=0)
    images = torch.randn(2, 3, 32, 32)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 0] = True  # Only the top left corner of the first image.
    changed = images.clone()
    changed[:, :, :8, :8] = 0.0
    token = torch.randn(24)
    first, second = encode(encoder, images, mask, token)
    first_changed, second_changed = encode(encoder, changed, mask, token)
    torch.testing.assert_close(first, first_changed)
    assert not torch.allclose(second, second_changed)


def test_nothing_hidden_is_forward_features() -> None:
    encoder: Any = build_encoder(TINY, seed=0)
    images = torch.randn(2, 3, 32, 32)
    nothing = torch.zeros(2, 16, dtype=torch.bool)
    assert torch.equal(
        encode(encoder, images, nothing, torch.randn(24)), encoder.forward_features(images)
    )


@pytest.mark.parametrize("wrong", [{"image_size": 30}, {"width": 25}])
def test_sizes_that_do_not_divide_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is not a multiple of"):
        EncoderConfig(**{**TINY.model_dump(), **wrong})


def test_plain_attention_is_the_fused_ones_result() -> None:
    encoder: Any = build_encoder(TINY, seed=0)
    images = torch.randn(2, 3, 32, 32)
    fused = encoder.forward_features(images)
    use_plain_attention(encoder)
    assert not encoder.blocks[0].attn.fused_attn
    torch.testing.assert_close(encoder.forward_features(images), fused)
