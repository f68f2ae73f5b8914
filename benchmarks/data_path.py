"""Images per second and core of the data path: decode, one global and four local crops.

    python -m benchmarks.data_path

The alternative does what the reference does: PIL decodes, and each crop is cropped, jittered,
blurred and normalised by itself on the CPU. Between the two stands what is left of ours when the
colours are done on the CPU, too.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from trainer.crops import CropsConfig, crop_image, decode
from trainer.photometric import PhotometricConfig, augment
from trainer.vit import IMAGENET_MEAN, IMAGENET_STD

CROPS, PHOTOMETRIC = CropsConfig(), PhotometricConfig()
GLOBAL_SIZE = 224


def jpeg(side: int, generator: np.random.Generator) -> bytes:
    """A picture with coarse shapes and fine noise, as large a file as a photograph's."""
    coarse = generator.normal(128, 60, (side // 16, side // 16, 3)).clip(0, 255).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    pixels = (smooth + generator.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def per_image(size: int, scale: tuple[float, float]) -> v2.Compose:
    """One crop of a PIL picture with all of the augmentation, as torchvision's users write it."""
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


def rate(load: Callable[[bytes], object], images: list[bytes]) -> float:
    """Images per second of CPU time, so that other work on the machine does not count."""
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
        for _ in range(arguments.turns):
            for name, load in kinds.items():
                turns[name].append(rate(load, images))
        base = statistics.median(turns["PIL, all per image"])
        for name, rates in turns.items():
            median = statistics.median(rates)
            print(f"{side} px  {name:26s} {median:6.0f} images/s/core  {median / base:5.1f}x")


if __name__ == "__main__":
    main()
