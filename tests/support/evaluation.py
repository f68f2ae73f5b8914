"""Small checkpoint, pictures and config of an evaluation, and the scores that it writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
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


def save_job(folder: Path, datasets: list[str], **settings: Any) -> tuple[Path, Path]:
    """Write a run with a checkpoint, and the config of its evaluation; return both paths.

    Args:
        folder: Where to write.
        datasets: Data sets to score on.
        settings: Other keys of the config.
    """
    run, path = folder / "run", folder / "evaluate.yaml"
    save_checkpoint(run)
    common = {"run": str(run), "datasets": datasets, "num_untrained": 2, "device": "cpu"}
    path.write_text(yaml.safe_dump({**common, **settings}))
    return run, path


def read_scores(run: Path) -> list[dict[str, Any]]:
    """Return all rows of the score sheet of a run."""
    found: list[dict[str, Any]] = json.loads((run / "scores" / "scores.json").read_text())
    return found


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
