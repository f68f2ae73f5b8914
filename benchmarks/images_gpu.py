"""Images per second of the engine as configured, compared with a simple loop.

    python -m benchmarks.images_gpu [--captions 32] [--repeats 3] [CONFIG] [key=value ...]

The default is Stable Diffusion 1.5 at the paper's settings, `pipelines/configs/sd15.yaml`, with
random weights, which take the same time as the real ones. `CONFIG model=...` takes another model.
To test this script on any machine: `CONFIG model=builtin:tiny-sd engine.device=cpu
engine.dtype=float32 engine.compile=false generator.size=64 generator.stored_size=64`.

The simple loop takes one caption at a time, encodes it in float32, generates its four images with
the pipeline as diffusers loads it, in the same type as ours, and discards them. Ours mixes captions
in one batch, encodes each once, and is compiled; it scales the images and copies them to the host.
Both are warmed up and take turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.images import ImagesConfig, builtin_model
from tests.support.random_sd import letter_tokenizer
from transforms.core.config import load_config
from transforms.engines.image.base import GeneratorConfig
from transforms.engines.image.diffusers import DiffusersConfig, DiffusersEngine
from transforms.engines.image.models import image_model_source
from transforms.engines.model_refs import Model

CONFIG = "pipelines/configs/sd15.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--captions", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("config", nargs="?", default=CONFIG)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    overrides = ["model=random", *arguments.overrides]
    config = load_config(ImagesConfig, arguments.config, overrides)
    with tempfile.TemporaryDirectory() as scratch:
        name = config.model if config.model != "random" else write_sd15(Path(scratch) / "sd15")
        assert isinstance(config.engine, DiffusersConfig)
        model = config.engine.find_model(str(name), config.revision, builtin_model)
        engine = DiffusersEngine(model, config.engine, config.generator)
        loop = PlainLoop(model, config.engine, config.generator)
    texts = [f"a cat on chair number {i}, in the forest" for i in range(arguments.captions)]
    number = config.images_per_caption
    warm_up = texts[: -(-config.engine.batch_size // number)]
    timed_ours(engine, warm_up, number)
    loop.seconds(texts[:1], number)
    ours, plain = [], []
    for turn in range(arguments.repeats):
        ours.append(number * len(texts) / timed_ours(engine, texts, number))
        plain.append(number * len(texts) / loop.seconds(texts, number))
        print(f"turn {turn}: ours {ours[-1]:.2f}, plain loop {plain[-1]:.2f} images/s")
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    print(
        f"{device_name(config.engine)}: {number * len(texts)} images, batches of "
        f"{engine.batch_size}, medians of {arguments.repeats}: ours {statistics.median(ours):.2f}, "
        f"plain loop {statistics.median(plain):.2f} images/s, ratio of a turn {ratio:.2f}"
    )


def write_sd15(folder: Path) -> Path:
    """Write a model with the architecture of Stable Diffusion 1.5 and random weights."""
    import torch
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = letter_tokenizer(folder, max_length=77)
    torch.manual_seed(0)
    text_config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # The default blocks and widths of diffusers' UNet are those of Stable Diffusion 1.5.
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            skip_prk_steps=True, steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
    return folder


class PlainLoop:
    """The pipeline as diffusers loads it, except for DDIM and a text encoder in float32."""

    def __init__(self, model: Model, config: DiffusersConfig, generator: GeneratorConfig) -> None:
        import torch
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        self._device = config.device
        self._generator = generator
        self._pipeline: Any = StableDiffusionPipeline.from_pretrained(
            image_model_source(model), revision=model.commit, dtype=getattr(torch, config.dtype)
        ).to(config.device)
        self._pipeline.scheduler = DDIMScheduler.from_config(self._pipeline.scheduler.config)
        self._pipeline.set_progress_bar_config(disable=True)
        # Removed, since the pipeline would convert the embeddings to its type.
        self._text_encoder = self._pipeline.text_encoder.float()
        self._pipeline.text_encoder = None

    def seconds(self, texts: Sequence[str], number: int) -> float:
        """Return the seconds for `number` images of every caption, one caption at a time."""
        config = self._generator
        started = time.perf_counter()
        for text in texts:
            prompt, negative = self._encode(text), self._encode("")
            self._pipeline(
                prompt_embeds=prompt,
                negative_prompt_embeds=negative,
                num_images_per_prompt=number,
                num_inference_steps=config.num_steps,
                guidance_scale=config.guidance,
                height=config.size,
                width=config.size,
                output_type="np",
            )
        return time.perf_counter() - started

    def _encode(self, text: str) -> Any:
        import torch

        tokenizer = self._pipeline.tokenizer
        tokens = tokenizer(
            text,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        with torch.inference_mode():
            states = self._text_encoder(tokens.to(self._device))[0]
        return states.to(self._pipeline.unet.dtype)


def timed_ours(engine: DiffusersEngine, texts: Sequence[str], number: int) -> float:
    """Return the seconds for `number` images of every caption, in mixed batches."""
    tasks = [(text, i) for text in texts for i in range(number)]
    started = time.perf_counter()
    for start in range(0, len(tasks), engine.batch_size):
        batch = tasks[start : start + engine.batch_size]
        engine.paint([text for text, _ in batch], [start + i for _, i in batch])
    return time.perf_counter() - started


def device_name(config: DiffusersConfig) -> str:
    import torch

    return torch.cuda.get_device_name() if config.device == "cuda" else config.device


if __name__ == "__main__":
    main()
