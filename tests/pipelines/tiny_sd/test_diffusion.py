from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.tiny_sd.autoencoder import build_autoencoder
from pipelines.tiny_sd.diffusion import (
    diffusion_loss,
    draw_batch,
    learning_rate,
    train_diffusion,
    update_average,
)
from pipelines.tiny_sd.export import assemble, export
from pipelines.tiny_sd.latents import LatentCache
from pipelines.tiny_sd.networks import Networks, build_scheduler
from pipelines.tiny_sd.text_encoder import load_tokenizer, tokenize
from tests.support.tiny_sd import AUTOENCODER, CONCEPTS, DIFFUSION, TEXT, make_composer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Oracle:
    """A network that predicts the exact v, because it has the clean latents."""

    def __init__(self, clean: torch.Tensor, alphas: torch.Tensor) -> None:
        self.clean, self.alphas = clean, alphas

    def __call__(
        self, noisy: torch.Tensor, times: torch.Tensor, hidden: torch.Tensor
    ) -> SimpleNamespace:
        alpha = self.alphas[times][:, None, None, None]
        noise = (noisy - alpha.sqrt() * self.clean) / (1 - alpha).sqrt()
        return SimpleNamespace(sample=alpha.sqrt() * noise - (1 - alpha).sqrt() * self.clean)


def test_the_schedule_ends_in_pure_noise() -> None:
    alphas = build_scheduler().alphas_cumprod
    assert alphas[-1] < 1e-6
    assert alphas[0] > 0.99
    assert (alphas.diff() < 0).all()


def test_the_loss_is_zero_for_the_true_v_and_the_weight_is_bounded() -> None:
    clean, alphas = torch.randn(64, 4, 8, 8), build_scheduler().alphas_cumprod
    generator = torch.Generator().manual_seed(0)
    hidden = torch.zeros(64, 1, 1)
    loss = diffusion_loss(Oracle(clean, alphas), clean, hidden, alphas, 5.0, generator)
    assert loss < 1e-6
    silent = lambda x, t, h: SimpleNamespace(sample=torch.zeros_like(x))  # noqa: E731
    assert 0 < diffusion_loss(silent, clean, hidden, alphas, 5.0, generator) < 2.0


def test_the_sampler_finds_the_latents_that_an_oracle_knows() -> None:
    scheduler = build_scheduler()
    clean = torch.randn(2, 4, 8, 8)
    oracle = Oracle(clean, scheduler.alphas_cumprod.clamp(max=1 - 1e-7))
    scheduler.set_timesteps(10)
    latents = torch.randn(2, 4, 8, 8)
    for time in scheduler.timesteps:
        predicted = oracle(latents, time.repeat(2), latents).sample
        latents = scheduler.step(predicted, time, latents).prev_sample
    torch.testing.assert_close(latents, clean, atol=1e-3, rtol=1e-3)


def test_concepts_are_whole_tokens_and_captions_have_one_length(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(CONCEPTS, TEXT, tmp_path)
    for concept in CONCEPTS:
        assert tokenizer.tokenize(concept) == [f"{concept}</w>"]
    long = "a very " + "fluffy " * 100 + "cat"
    ids = tokenize(tokenizer, ["", "a cat", long])
    assert ids.shape == (3, TEXT.max_length)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids[:, -1] == tokenizer.eos_token_id).all()
    again = load_tokenizer(["other"], TEXT, tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_training_and_export_make_a_folder_that_diffusers_loads(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    composer = make_composer()
    autoencoder = build_autoencoder(AUTOENCODER).eval()
    cache = LatentCache(autoencoder, composer, DIFFUSION.num_cached, seed=0)
    tokenizer = load_tokenizer(CONCEPTS, TEXT, tmp_path / "tokenizer")
    networks = train_diffusion(
        cache, CONCEPTS, tokenizer, DIFFUSION, TEXT, tmp_path / "diffusion.pt", num_first=1
    )
    parts = (networks.text_encoder, tokenizer, networks.unet, build_scheduler())
    folder = tmp_path / "model"
    export(assemble(autoencoder, *parts), folder)
    assert not list(tmp_path.glob(".tiny-sd-*"))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert {part.dtype for part in (pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)

    def paint() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return pipeline(
            "a cat",
            num_inference_steps=2,
            guidance_scale=2.5,
            generator=generator,
            output_type="np",
        ).images

    picture = paint()
    assert picture.shape == (1, 64, 64, 3)
    assert np.isfinite(picture).all()
    assert (picture == paint()).all()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_batch_shows_its_share_of_the_second_wave(share: float) -> None:
    composer = make_composer()
    cache = LatentCache(build_autoencoder(AUTOENCODER).eval(), composer, 64, seed=0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        batch = draw_batch(cache, CONCEPTS, 10, rng, 1, share)
        captioned = batch.concepts >= 0
        dogs = torch.arange(10) >= 10 - round(10 * share)
        assert ((batch.concepts == 1) == dogs)[captioned].all()


def test_the_pooling_of_the_caption_is_a_mean_and_stays_one(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(CONCEPTS, TEXT, tmp_path)
    pooling = Networks(tokenizer, 2, DIFFUSION, TEXT, 4).unet.add_embedding.pool
    assert not any(p.requires_grad for p in pooling.q_proj.parameters())
    hidden = torch.randn(3, 5, TEXT.width)
    start = hidden.mean(1, keepdim=True) + pooling.positional_embedding
    wanted = pooling.v_proj(torch.cat([start, hidden], 1)).mean(1)
    torch.testing.assert_close(pooling(hidden), wanted)


def test_the_learning_rate_rises_twice_and_ends_at_zero() -> None:
    config = DIFFUSION.model_copy(
        update={"num_steps": 1000, "num_first_steps": 400, "decay_steps": 100}
    )
    rates = np.array([learning_rate(step, config) for step in range(1000)]) / config.learning_rate
    for begin in (0, 400):
        assert rates[begin] < 0.01
        assert (np.diff(rates[begin : begin + 200]) > 0).all()
    assert (rates[200:400] == 1).all() and (rates[600:900] == 1).all()
    assert (np.diff(rates[900:]) < 0).all() and rates[-1] < 0.02


def test_the_average_moves_by_one_minus_decay(tmp_path: Path) -> None:
    averaged, model = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    wanted = 0.9 * averaged.weight + 0.1 * model.weight
    update_average(averaged, model, 0.9)
    torch.testing.assert_close(averaged.weight, wanted)


def test_resumed_networks_are_the_saved_ones(tmp_path: Path) -> None:
    composer = make_composer()
    cache = LatentCache(build_autoencoder(AUTOENCODER).eval(), composer, 16, seed=0)
    tokenizer = load_tokenizer(CONCEPTS, TEXT, tmp_path / "tokenizer")
    first, again = (
        train_diffusion(cache, CONCEPTS, tokenizer, DIFFUSION, TEXT, tmp_path / "diffusion.pt", 1)
        for _ in range(2)
    )
    assert isinstance(again, Networks)
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
