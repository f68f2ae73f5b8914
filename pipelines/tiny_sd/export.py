"""Export of the trained parts to a folder that `StableDiffusionPipeline.from_pretrained` loads."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTokenizer


def assemble(
    autoencoder: "AutoencoderKL",
    text_encoder: "CLIPTextModel",
    tokenizer: "CLIPTokenizer",
    unet: "UNet2DConditionModel",
    scheduler: "DDIMScheduler",
) -> "StableDiffusionPipeline":
    """Return a pipeline of the parts."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(pipeline: "StableDiffusionPipeline", folder: Path) -> None:
    """Save a pipeline to a folder, replacing each file atomically.

    Weights are stored in half precision and loaded in single precision, unless the caller names
    another type. The parts are converted in place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.to(dtype=torch.float16)
    # Next to the folder, so that every file is moved within one file system.
    scratch = Path(tempfile.mkdtemp(prefix=".tiny-sd-", dir=folder.parent))
    try:
        pipeline.save_pretrained(scratch, safe_serialization=True)
        _load_in_single_precision(scratch / "text_encoder" / "config.json")
        for source in sorted(p for p in scratch.rglob("*") if p.is_file()):
            target = folder / source.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
            target.chmod(0o644)
    finally:
        shutil.rmtree(scratch)


def _load_in_single_precision(config: Path) -> None:
    """Set the type in the config of a text encoder.

    transformers loads a model in the type that its config names, which is that of the stored
    weights; diffusers loads the other parts in single precision, and both must agree.
    """
    values = {**json.loads(config.read_text(encoding="utf-8")), "dtype": "float32"}
    text = json.dumps(values, indent=2, sort_keys=True)
    config.write_text(text + "\n", encoding="utf-8")
