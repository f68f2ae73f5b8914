from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.random_sd import write_random_sd
from transforms.core.config import ConfigError
from transforms.core.counters import Count
from transforms.engines.diffusers_engine import DiffusersEngine, DiffusersSpec
from transforms.engines.image import GeneratorConfig
from transforms.engines.image_models import find_model

BATCH_SIZE = 6


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_sd(tmp_path_factory.mktemp("models") / "random-sd")


@pytest.fixture(scope="module")
def load(folder: Path) -> Callable[..., DiffusersEngine]:
    def load(**changes: Any) -> DiffusersEngine:
        fields = {"num_steps": 3, "size": 32, "stored_size": 32, "batch_size": BATCH_SIZE}
        return DiffusersSpec(find_model(str(folder)), GeneratorConfig(**fields | changes)).load()

    return load


@pytest.fixture(scope="module")
def engine(load: Callable[..., DiffusersEngine]) -> DiffusersEngine:
    return load()


TEXTS = ["a red cat", "two dogs", "a red cat", "a house by the sea", "", "cat"]
SEEDS = [7, 8, 9, 2**62, 0, 7]


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
    assert np.abs(difference).max() <= 0.51, "rounding apart, the same pixels"


def test_captions_are_encoded_once(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    original = engine._pipeline.encode_prompt

    def count(prompt: Any, *arguments: Any, **named: Any) -> Any:
        # The pipeline passes None beside embeddings that are made already.
        encoded.extend(text for text in prompt or [] if text)
        return original(prompt, *arguments, **named)

    monkeypatch.setattr(engine._pipeline, "encode_prompt", count)
    texts = [f"caption {i // 4}" for i in range(12)]
    for start in (0, 6):
        engine.paint(texts[start : start + 6], list(range(6)))
    assert sorted(encoded) == ["caption 0", "caption 1", "caption 2"]


def test_without_guidance_the_empty_caption_does_not_matter(
    load: Callable[..., DiffusersEngine], engine: DiffusersEngine
) -> None:
    plain = load(guidance=1.0).paint(TEXTS[:2], SEEDS[:2]).pixels
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


def sizes() -> Sequence[tuple[dict[str, Any], str]]:
    return [({"size": 16, "stored_size": 32}, "stored_size"), ({"size": 30}, "multiple of 8")]


@pytest.mark.parametrize(("changes", "message"), sizes())
def test_impossible_sizes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_accelerator_is_an_error(load: Callable[..., DiffusersEngine]) -> None:
    with pytest.raises(ConfigError, match=r"generator\.device"):
        load(device="cuda")


@pytest.mark.gpu
def test_on_an_accelerator_too_an_image_depends_on_nothing_else(
    load: Callable[..., DiffusersEngine],
) -> None:
    engine = load(device="cuda", dtype="float16")
    together = engine.paint(TEXTS, SEEDS).pixels
    alone = [engine.paint([t], [s]).pixels[0] for t, s in zip(TEXTS, SEEDS, strict=True)]
    np.testing.assert_array_equal(np.stack(alone), together)
