"""Images per second of the whole images stage, compared with a bare diffusers loop.

    python -m benchmarks.images_stage [--captions 48] [--repeats 3] [CONFIG] [key=value ...]

Both use the same captions, model, steps, guidance and batch size, and take turns in one process.
The bare loop calls `StableDiffusionPipeline` and discards the images; the stage runs on Beam,
checks, encodes and commits them. Neither includes loading the model. The ratio is given by wall
time and by processor time, which is less disturbed by other work on the machine.
"""

import argparse
import tempfile
import time
import unittest.mock
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.images import ImagesConfig, builtin_model, run
from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.config import load_config
from transforms.core.counters import Tally
from transforms.core.index import write_index
from transforms.core.records import Caption
from transforms.core.seeding import caption_id
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES
from transforms.engines.image.base import ImageEngine, ImageEngineSpec
from transforms.engines.image.diffusers import DiffusersConfig, DiffusersEngine

Seconds = NDArray[np.float64]
"""Wall time and processor time, [2]."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("config", nargs="?", default="pipelines/configs/demo-images.yaml")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = load_config(ImagesConfig, arguments.config, arguments.overrides)
    texts = [
        f"a cat on chair number {number}, in the forest" for number in range(arguments.captions)
    ]
    num_images = len(texts) * config.images_per_caption
    pipeline = _bare_pipeline(config)
    # Warm up once each: imports and first calls are not typical of a long run.
    _bare(pipeline, config, texts[:1])
    _stage(config, texts[:1])
    bare, stage = [], []
    for turn in range(arguments.repeats):
        bare.append(num_images / _bare(pipeline, config, texts))
        stage.append(num_images / _stage(config, texts))
        print(f"turn {turn}: bare {bare[-1][0]:.2f} images/s, stage {stage[-1][0]:.2f} images/s")
    medians = np.median(stage, axis=0)[0], np.median(bare, axis=0)[0]
    ratio, of_processor_time = np.median(np.divide(stage, bare), axis=0)
    print(
        f"{num_images} images, batches of {_engine(config).batch_size}, medians of "
        f"{arguments.repeats}: stage {medians[0]:.2f}, bare {medians[1]:.2f} images/s, "
        f"ratio of a turn {ratio:.3f}, by processor time {of_processor_time:.3f}"
    )


def _engine(config: ImagesConfig) -> DiffusersConfig:
    assert isinstance(config.engine, DiffusersConfig)
    return config.engine


def _bare_pipeline(config: ImagesConfig) -> Any:
    # The engine's own loader, so that both have the same weights, sampler and precision.
    model = config.engine.find_model(config.model, config.revision, builtin_model)
    return DiffusersEngine(model, _engine(config), config.generator)._pipeline


def _clocks() -> Seconds:
    return np.array([time.perf_counter(), time.process_time()])


def _bare(pipeline: Any, config: ImagesConfig, texts: Sequence[str]) -> Seconds:
    """Return the time to generate the images of every caption; they are discarded."""
    import torch

    generator, size = config.generator, _engine(config).batch_size
    prompts = [text for text in texts for _ in range(config.images_per_caption)]
    started = _clocks()
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        pipeline(
            batch,
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(batch))],
            num_inference_steps=generator.num_steps,
            guidance_scale=generator.guidance,
            height=generator.size,
            width=generator.size,
            output_type="np",
        )
    return _clocks() - started


def _stage(config: ImagesConfig, texts: Sequence[str]) -> Seconds:
    """Return the time of the stage on a new run, without loading the model."""
    loading = np.zeros(2)
    load = ImageEngineSpec.open

    def timed(spec: ImageEngineSpec) -> ImageEngine:
        started = _clocks()
        engine = load(spec)
        np.add(loading, _clocks() - started, out=loading)
        return engine

    with tempfile.TemporaryDirectory() as folder:
        _write_captions(storage.join(folder, "captions"), texts)
        with unittest.mock.patch.object(ImageEngineSpec, "open", timed):
            started = _clocks()
            run(config.model_copy(update={"run": folder}), [])
            return _clocks() - started - loading


def _write_captions(url: str, texts: Sequence[str]) -> None:
    folder = StageFolder(url, STAGES["captions"])
    captions = [
        Caption(caption_id(text), text, ordinal, "cat", "benchmark", "c", None, None)
        for ordinal, text in enumerate(texts)
    ]
    with ShardBuild(folder, 0) as build:
        build.write(captions)
        record = build.commit([str(c.ordinal) for c in captions], "benchmark", Tally())
    write_index(folder, [record], {"stage": "captions"})


if __name__ == "__main__":
    main()
