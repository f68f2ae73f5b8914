"""Images per second and core of the data path: decoding, one global crop and four local crops.

    python -m benchmarks.data_path

The alternative works like the reference: PIL decodes, and every crop is cropped, jittered, blurred
and normalised separately on the CPU. The second line is our path with the colours computed on the
CPU as well. The last line is everything that a worker process does in a training of the paper's
size: one of 6 workers of one of 32 ranks reads its captions of every sixth step from 600,000 shards
of 250 captions (all are links to one file, so the disk is not measured).
"""

import argparse
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from benchmarks.resume import write_run, write_shard
from trainer.data.batch import CroppedSamples, CropSpec
from trainer.data.crops import CropsConfig, crop_image, decode
from trainer.data.photometric import PhotometricConfig, augment
from trainer.data.sampler import RankSampler, ShuffleSampler
from trainer.data.shard_reader import ShardReader
from trainer.models.vit import IMAGENET_MEAN, IMAGENET_STD

CROPS, PHOTOMETRIC = CropsConfig(), PhotometricConfig()
GLOBAL_SIZE = 224


def jpeg(side: int, generator: np.random.Generator) -> bytes:
    """Return a JPEG with coarse shapes and fine noise, about as large as that of a photograph."""
    coarse = generator.normal(128, 60, (side // 16, side // 16, 3)).clip(0, 255).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    pixels = (smooth + generator.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def per_image(size: int, scale: tuple[float, float]) -> v2.Compose:
    """Return the whole augmentation of one crop, as users of torchvision write it."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def pil_pipeline() -> Callable[[bytes], object]:
    large, small = per_image(GLOBAL_SIZE, (0.32, 1.0)), per_image(CROPS.local_size, (0.08, 0.32))

    def load(image: bytes) -> object:
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        return [large(picture), *(small(picture) for _ in range(CROPS.num_local))]

    return load


def ours(*, colours: bool) -> Callable[[bytes], object]:
    seeds = iter(range(1 << 30))

    def load(image: bytes) -> object:
        crops = crop_image(
            decode(image),
            CROPS,
            PHOTOMETRIC,
            global_size=GLOBAL_SIZE,
            patch_size=16,
            patch_share=0.5,
            seed=next(seeds),
        )
        if not colours:
            return crops
        settings = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        return [
            augment(crops.global_pixels, crops.global_draws, PHOTOMETRIC, **settings),
            augment(crops.local_pixels, crops.local_draws, PHOTOMETRIC, **settings),
        ]

    return load


def samples_of_paper(folder: Path, images: list[bytes]) -> CroppedSamples:
    """Return the paper's 150 million captions, in shards of these images."""
    write_shard(folder / "one.tar", itertools.cycle(images))
    write_run(folder / "run", folder / "one.tar", num_shards=600_000)
    reader = ShardReader(str(folder / "run" / "images" / "index.parquet"))
    spec = CropSpec(
        crops=CROPS,
        photometric=PHOTOMETRIC,
        global_size=GLOBAL_SIZE,
        patch_size=16,
        patch_share=0.5,
        images_per_caption=4,
    )
    sampler = ShuffleSampler(reader.shard_sizes, seed=0, window=100)
    return CroppedSamples(reader, sampler, spec, seed=0)


def worker_rate(samples: CroppedSamples, steps: range) -> float:
    """Return images per second of CPU time of a worker that reads these steps of rank 5 of 32."""
    rank_sampler = RankSampler(samples.sampler, 8192, rank=5, ranks=32)
    started = time.process_time()
    for step in steps:
        samples.batch(rank_sampler(step))
    return len(steps) * 256 * 4 / (time.process_time() - started)


def rate(load: Callable[[bytes], object], images: list[bytes]) -> float:
    """Return images per second of CPU time, so that other work on the machine does not count."""
    started = time.process_time()
    for image in images:
        load(image)
    return len(images) / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for side in (256, 512):
        generator = np.random.default_rng(0)
        images = [jpeg(side, generator) for _ in range(arguments.images)]
        kinds = {
            "PIL, all per image": pil_pipeline(),
            "ours, colours on the CPU": ours(colours=True),
            "ours": ours(colours=False),
        }
        turns: dict[str, list[float]] = {name: [] for name in kinds}
        for load in kinds.values():
            rate(load, images[:5])
        with tempfile.TemporaryDirectory() as folder:
            samples = samples_of_paper(Path(folder), images)
            worker = turns["ours, a worker of the paper's run"] = []
            for turn in range(arguments.turns):
                for name, load in kinds.items():
                    turns[name].append(rate(load, images))
                worker.append(worker_rate(samples, range(12 * turn, 12 * turn + 12, 6)))
        base = statistics.median(turns["PIL, all per image"])
        for name, rates in turns.items():
            median = statistics.median(rates)
            print(f"{side} px  {name:34s} {median:6.0f} images/s/core  {median / base:5.1f}x")


if __name__ == "__main__":
    main()
