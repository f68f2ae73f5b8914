import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.random_engines import SEEDS, TEXTS, load_from
from tests.support.random_sd import write_random_sd3, write_random_sdxl
from transforms.core.counters import Count
from transforms.core.errors import ConfigError
from transforms.engines.image.base import GeneratorConfig
from transforms.engines.image.diffusers import DiffusersEngine


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_image_depends_on_nothing_but_its_caption_and_seed(
    load: Callable[..., DiffusersEngine], dtype: str
) -> None:
    engine = load(dtype=dtype)
    together = engine.paint(TEXTS, SEEDS).pixels
    assert together.shape == (6, 32, 32, 3)
    assert together.dtype == np.uint8
    order = [3, 5, 0, 4, 2, 1]
    shuffled = load(dtype=dtype).paint([TEXTS[i] for i in order], [SEEDS[i] for i in order]).pixels
    np.testing.assert_array_equal(shuffled, together[order])
    for i, (text, seed) in enumerate(zip(TEXTS, SEEDS, strict=True)):
        np.testing.assert_array_equal(engine.paint([text], [seed]).pixels[0], together[i])
    crowd = [f"another thing {i}" for i in range(5)]
    np.testing.assert_array_equal(
        engine.paint([*crowd, TEXTS[1]], [*range(5), SEEDS[1]]).pixels[-1], together[1]
    )


def test_captions_and_seeds_both_matter(engine: DiffusersEngine) -> None:
    pixels = engine.paint(TEXTS, SEEDS).pixels
    assert len({image.tobytes() for image in pixels}) == len(TEXTS)


def test_it_paints_what_the_plain_pipeline_paints(folder: Path, engine: DiffusersEngine) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt=TEXTS,
        latents=torch.cat(
            [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in SEEDS]
        ),
        num_inference_steps=3,
        guidance_scale=2.5,
        output_type="np",
    ).images
    difference = engine.paint(TEXTS, SEEDS).pixels - expected * 255
    assert np.abs(difference).max() <= 0.51, "the same pixels up to rounding"


def test_captions_are_encoded_once(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    original = engine._pipeline.encode_prompt

    def count(prompt: Any, *arguments: Any, **named: Any) -> Any:
        # The pipeline passes None if it has got embeddings.
        encoded.extend(text for text in prompt or [] if text)
        return original(prompt, *arguments, **named)

    monkeypatch.setattr(engine._pipeline, "encode_prompt", count)
    texts = [f"caption {i // 4}" for i in range(12)]
    for start in (0, 6):
        engine.paint(texts[start : start + 6], list(range(6)))
    assert sorted(encoded) == ["caption 0", "caption 1", "caption 2"]


def test_without_guidance_the_empty_caption_does_not_matter(
    load: Callable[..., DiffusersEngine],
    engine: DiffusersEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "transforms"):
        plain = load(guidance=1.0).paint(TEXTS[:2], SEEDS[:2]).pixels
    assert re.search(r"/random-sd is ready after \d+ s", caplog.text)
    assert not np.array_equal(plain, engine.paint(TEXTS[:2], SEEDS[:2]).pixels)


def test_images_are_scaled_down_before_they_leave_the_device(
    load: Callable[..., DiffusersEngine], engine: DiffusersEngine
) -> None:
    small = load(stored_size=8).paint(TEXTS, SEEDS).pixels.astype(float)
    assert small.shape == (6, 8, 8, 3)
    large = engine.paint(TEXTS, SEEDS).pixels.astype(float)
    averages = large.reshape(6, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    assert np.corrcoef(small.ravel(), averages.ravel())[0, 1] > 0.97


def test_an_image_that_is_not_finite_is_called_so(
    load: Callable[..., DiffusersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load()
    original = engine._pipeline.vae.decode

    def broken(latents: torch.Tensor, **named: Any) -> Any:
        (images,) = original(latents, **named)
        images[1, 0, 5, 5] = torch.nan
        return (images,)

    monkeypatch.setattr(engine._pipeline.vae, "decode", broken)
    assert engine.paint(TEXTS[:3], SEEDS[:3]).rejects == (None, Count.IMAGE_NOT_FINITE, None)


def test_a_caption_longer_than_the_text_encoder_reads(
    engine: DiffusersEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.paint(["a very long caption " * 20], [0])
    assert capfd.readouterr() == ("", "")


def test_a_negative_prompt_matters(
    load: Callable[..., DiffusersEngine], engine: DiffusersEngine
) -> None:
    away = load(negative_prompt="dogs").paint(TEXTS, SEEDS).pixels
    assert not np.array_equal(away, engine.paint(TEXTS, SEEDS).pixels)
    with pytest.raises(ValueError, match=r"(?s)negative_prompt.*guidance above 1"):
        load(negative_prompt="dogs", guidance=1.0)


def short_of_memory(engine: DiffusersEngine, fitting: int) -> None:
    """Let every batch of more than `fitting` images fail."""
    original = engine._pipeline

    def call(**arguments: Any) -> Any:
        if len(arguments["generator"]) > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(**arguments)

    engine._pipeline = call


def test_a_batch_too_large_for_the_memory_is_halved(
    load: Callable[..., DiffusersEngine],
    engine: DiffusersEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = engine.paint(TEXTS, SEEDS)
    small = load()
    short_of_memory(small, 2)
    with caplog.at_level(logging.WARNING):
        painted = [small.paint(TEXTS, SEEDS) for _ in range(2)]
    assert small.batch_size == 2
    # Another test of this process may have let information through as well.
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.message.split(";")[0][-1] for record in warnings] == ["3", "2"]
    for again in painted:
        assert again.rejects == expected.rejects
        difference = again.pixels.astype(int) - expected.pixels
        assert np.abs(difference).max() <= 1, "the same images up to rounding"


def test_not_even_one_image_fits(load: Callable[..., DiffusersEngine]) -> None:
    engine = load()
    short_of_memory(engine, 0)
    with pytest.raises(torch.OutOfMemoryError):
        engine.paint(TEXTS, SEEDS)


@pytest.fixture(scope="module", params=[write_random_sdxl, write_random_sd3])
def other_family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> DiffusersEngine:
    """Return a pipeline with two text encoders, or one whose denoiser is a transformer."""
    folder = request.param(tmp_path_factory.mktemp("models") / "random")
    return load_from(folder, scheduler="model", negative_prompt="dogs")


def test_other_families_too(other_family: DiffusersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    together = other_family.paint(TEXTS, SEEDS).pixels
    assert len({image.tobytes() for image in together}) == len(TEXTS)
    for i in (1, 5):
        alone = other_family.paint(TEXTS[i : i + 1], SEEDS[i : i + 1]).pixels
        np.testing.assert_array_equal(alone[0], together[i])
    # Like an unknown pipeline: with captions as text, and noise from the same generators.
    monkeypatch.setattr(other_family, "_encoder", None)
    np.testing.assert_array_equal(other_family.paint(TEXTS, SEEDS).pixels, together)


def sizes() -> Sequence[tuple[dict[str, Any], str]]:
    return [({"size": 16, "stored_size": 32}, "stored_size"), ({"size": 30}, "multiple of 8")]


@pytest.mark.parametrize(("changes", "message"), sizes())
def test_impossible_sizes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_accelerator_is_an_error(load: Callable[..., DiffusersEngine]) -> None:
    with pytest.raises(ConfigError, match=r"engine\.device"):
        load(device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_on_an_accelerator_too_an_image_depends_on_nothing_else(
    load: Callable[..., DiffusersEngine], compiled: bool
) -> None:
    engine = load(device="cuda", dtype="float16", channels_last=True, compile=compiled)
    together = engine.paint(TEXTS, SEEDS).pixels
    alone = [engine.paint([t], [s]).pixels[0] for t, s in zip(TEXTS, SEEDS, strict=True)]
    np.testing.assert_array_equal(np.stack(alone), together)


@pytest.mark.gpu
def test_an_accelerator_paints_what_the_cpu_paints(
    load: Callable[..., DiffusersEngine], engine: DiffusersEngine
) -> None:
    difference = load(device="cuda").paint(TEXTS, SEEDS).pixels.astype(int)
    difference -= engine.paint(TEXTS, SEEDS).pixels
    assert np.abs(difference).mean() < 1, "the noise is drawn on the CPU for both"
