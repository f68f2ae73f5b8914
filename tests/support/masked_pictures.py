"""Small segmentation set in ADE20k's layout: the class of a pixel is its colour."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer.models.vit import EncoderConfig, build_encoder

COLOURS = ((210, 40, 30), (40, 190, 60), (40, 60, 210))
MODEL = EncoderConfig(image_size=32, patch_size=4, width=32, depth=2, num_heads=2)


def save_masked(root: Path, num_train: int = 20, num_test: int = 4, side: int = 40) -> Path:
    """Write the set below ROOT/ADEChallengeData2016; return `root`.

    Each picture has three upright bars of different colours, a strip of no class at the top, and
    another width than height.
    """
    base = root / "ADEChallengeData2016"
    base.mkdir(parents=True)
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    lines += [
        f"{n}\t0.1\t1\t1\t1\t{name}, thing" for n, name in enumerate(("red", "lime", "sky"), 1)
    ]
    (base / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    generator = np.random.default_rng(0)
    for split, prefix, count in (("training", "train", num_train), ("validation", "val", num_test)):
        for folder in ("images", "annotations"):
            (base / folder / split).mkdir(parents=True)
        for number in range(count):
            classes = generator.permutation(3)
            mask = np.repeat(classes, [side // 2, side // 4, side // 2])[None].repeat(side, 0)
            noise = generator.normal(0, 10, (*mask.shape, 3))
            pixels = np.clip(np.array(COLOURS)[mask] + noise, 0, 255).astype(np.uint8)
            values = (mask + 1).astype(np.uint8)
            values[:3] = 0
            name = f"ADE_{prefix}_{number:08d}"
            Image.fromarray(pixels).save(base / "images" / split / f"{name}.jpg", quality=95)
            Image.fromarray(values).save(base / "annotations" / split / f"{name}.png")
    return root


def small_encoder(seed: int = 0) -> torch.nn.Module:
    """Return a vision transformer of two blocks for pictures of 32 x 32."""
    return build_encoder(MODEL, seed)
