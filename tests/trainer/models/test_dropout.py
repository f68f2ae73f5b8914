"""Dropout by image: share, independence, and that an image takes its draws along."""

import torch
from torch import Tensor, nn

from trainer.models.dropout import Dropout, set_keys, use_dropout
from trainer.models.vit import EncoderConfig, build_encoder
from transforms.core.seeding import derive

CPU = torch.device("cpu")


def dropped(seeds: list[int], layer: int = 0, rate: float = 0.1) -> Tensor:
    module = Dropout(rate, layer)
    set_keys(module, seeds, CPU)
    return module(torch.ones(len(seeds), 50, 64))


def seeds_of(number: int) -> list[int]:
    return [derive("image", n, bits=64) for n in range(number)]


def test_elements_are_dropped_at_the_rate_and_the_mean_stays() -> None:
    kept = dropped(seeds_of(64))
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.9).item()}
    # Four standard deviations of 64 * 3,200 draws with probability 0.1.
    assert abs((kept == 0).double().mean().item() - 0.1) < 4 * (0.09 / kept.numel()) ** 0.5
    of_elements = (kept == 0).double().mean(dim=0).flatten()  # Each element of 64 images.
    assert of_elements.var().item() < 1.2 * 0.09 / 64
    of_images = (kept == 0).double().flatten(1).mean(dim=1)
    assert of_images.var().item() < 2 * 0.09 / 3200


def test_images_and_layers_are_independent() -> None:
    rows = torch.cat([dropped(seeds_of(8), layer, rate=0.5) for layer in range(4)]).flatten(1)
    correlations = torch.corrcoef(rows)
    others = correlations[~torch.eye(len(rows), dtype=torch.bool)]
    assert others.abs().max() < 5 / 3200**0.5


def test_an_image_has_the_same_draws_in_any_batch() -> None:
    seeds = seeds_of(6)
    whole = dropped(seeds)
    assert torch.equal(whole[4:], dropped(seeds[4:]))
    assert torch.equal(whole.flip(0), dropped(seeds[::-1]))


def test_the_encoder_drops_in_training_only_and_in_every_place() -> None:
    model = EncoderConfig(image_size=16, patch_size=8, width=12, depth=2, num_heads=2)
    encoder = build_encoder(model, seed=1)
    before = encoder.state_dict().keys()
    images = torch.randn(3, 3, 16, 16)
    plain = encoder(images)
    use_dropout(encoder, 0.3)
    assert encoder.state_dict().keys() == before
    assert sum(isinstance(module, Dropout) for module in encoder.modules()) == 1 + 3 * 2
    set_keys(encoder, seeds_of(3), CPU)
    assert not torch.allclose(encoder(images), plain)
    assert torch.equal(encoder.eval()(images), plain)
    layers = [int(m.layer) for m in encoder.modules() if isinstance(m, Dropout)]
    assert len(set(layers)) == len(layers)
    # Attention's weights are not dropped.
    assert isinstance(encoder.get_submodule("blocks.0.attn.attn_drop"), nn.Dropout)
