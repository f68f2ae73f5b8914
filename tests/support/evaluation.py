"""Small checkpoint and small folder of labelled pictures, for tests of evaluation."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer.checkpoints import files as checkpoint_files
from trainer.config import TrainConfig
from trainer.models.vit import EncoderConfig
from trainer.training.step import Training

MODEL = EncoderConfig(image_size=16, patch_size=8, width=16, depth=1, num_heads=2)
COLOURS = {"blue": (30, 60, 200), "green": (40, 180, 60), "red": (220, 40, 30)}


def save_checkpoint(run: Path, seed: int = 0) -> Path:
    """Write the checkpoint of a training at step 0; return its file."""
    config = TrainConfig.model_validate(
        {
            "run": str(run),
            "seed": seed,
            "model": MODEL.model_dump(),
            "crops": {"num_local": 0},
            "objective": {
                "contrastive_head": {"hidden": 8, "out": 8},
                "prototype_head": {"hidden": 8, "bottleneck": 8, "num_prototypes": 8},
            },
        }
    )
    training = Training(config, torch.device("cpu"))
    folder = checkpoint_files.checkpoints_folder(str(run / "train"))
    return Path(checkpoint_files.save_checkpoint(training.state(), folder))


def save_pictures(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write noisy pictures of one colour each to ROOT/SPLIT/COLOUR/; return `root`.

    Args:
        root: Folder of the data set.
        counts: Split -> number of pictures of each colour.
        seed: Seed of the noise.
    """
    generator = np.random.default_rng(seed)
    for split, count in counts.items():
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.normal(0, 20, (20, 24, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return root
