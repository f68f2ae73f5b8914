from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.tiny_sd.autoencoder import (
    build_autoencoder,
    crop,
    edge_loss,
    to_tensor,
    train_autoencoder,
)
from pipelines.tiny_sd.latents import LatentCache, encode, standardise_latents
from tests.support.tiny_sd import AUTOENCODER, make_composer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = train_autoencoder(make_composer(), AUTOENCODER, tmp_path / "whole.pt")

    class Interrupted(Exception):
        pass

    class StoppingComposer:
        """A composer that fails at the fourth batch, as if the process was killed."""

        def __init__(self) -> None:
            self.composer, self.batches = make_composer(), 0

        def sample(self, size: int, rng: np.random.Generator) -> object:
            self.batches += 1
            if self.batches == 4:
                raise Interrupted
            return self.composer.sample(size, rng)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.tiny_sd.training.SAVE_EVERY_S", 0.0)
        with pytest.raises(Interrupted):
            train_autoencoder(StoppingComposer(), AUTOENCODER, tmp_path / "cut.pt")  # type: ignore[arg-type]
    resumed = train_autoencoder(make_composer(), AUTOENCODER, tmp_path / "cut.pt")
    assert torch.equal(weights(whole), weights(resumed))


def test_the_encoder_stays_as_it_is_while_the_decoder_goes_on(tmp_path: Path) -> None:
    joint = AUTOENCODER.model_copy(update={"num_steps": 5, "num_decoder_steps": 0})
    first = train_autoencoder(make_composer(), joint, tmp_path / "a.pt")
    encoder, decoder = weights(first.encoder), weights(first.decoder)
    second = train_autoencoder(make_composer(), AUTOENCODER, tmp_path / "a.pt")
    assert torch.equal(weights(second.encoder), encoder)
    assert not torch.equal(weights(second.decoder), decoder)


def test_a_constant_offset_has_no_edges_and_a_step_has() -> None:
    real = torch.zeros(1, 3, 8, 8)
    assert edge_loss(real + 0.5, real) == 0
    step = real.clone()
    step[..., 4:] = 1.0  # a vertical edge: 1 of 7 differences at full size, 1 of 3 at half
    assert edge_loss(step, real).item() == pytest.approx(1 / 7 + 1 / 3)


def test_crops_are_windows_of_their_pictures() -> None:
    pictures = np.arange(2 * 64 * 64 * 3, dtype=np.int64).reshape(2, 64, 64, 3)
    cut = crop(pictures, np.random.default_rng(0))  # type: ignore[arg-type]
    assert cut.shape == (2, 32, 32, 3)
    for window, picture in zip(cut, pictures, strict=True):
        y, x = np.argwhere(picture[..., 0] == window[0, 0, 0])[0]
        assert (picture[y : y + 32, x : x + 32] == window).all()


@torch.no_grad()
def test_standardising_changes_latents_but_not_pictures() -> None:
    composer = make_composer()
    model = build_autoencoder(AUTOENCODER).eval()
    pictures = composer.sample(256, np.random.default_rng(1)).pictures
    images = to_tensor(pictures)
    before = model.encode(images).latent_dist
    painted = model.decode(before.mean).sample
    mean, deviation = standardise_latents(model, composer)
    after = model.encode(images).latent_dist
    torch.testing.assert_close(
        after.mean,
        (before.mean - mean[:, None, None]) / deviation[:, None, None],
        atol=2e-3,
        rtol=2e-3,
    )
    torch.testing.assert_close(
        after.std * deviation[:, None, None], before.std, atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(model.decode(after.mean).sample, painted, atol=1e-3, rtol=1e-3)
    latents = encode(model, pictures).float()
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.2
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.2


def test_the_cache_holds_all_concepts_alike() -> None:
    composer = make_composer()
    model = build_autoencoder(AUTOENCODER).eval()
    cache = LatentCache(model, composer, 10, seed=0)
    assert cache.latents.shape == (10, 4, 8, 8)
    assert np.bincount(cache.concepts).tolist() == [5, 5]
