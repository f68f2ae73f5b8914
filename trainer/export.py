"""Export: `python -m trainer.export CHECKPOINT OUT [--which=teacher|student]`.

OUT becomes a folder with `model.safetensors` and `config.json` in timm's layout, so that

    timm.create_model("local-dir:OUT", pretrained=True)

is the encoder, with its mean, std and input size in `pretrained_cfg`. CHECKPOINT is a checkpoint
file, or the folder of a training or run (its newest checkpoint). Exit code 0: written; 2: it holds
no encoder of ours, or the exported features differ; 1: a file cannot be read or written.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from trainer import cli
from trainer.checkpoints.files import find_checkpoint, load_encoder
from trainer.models.vit import EncoderConfig, architecture
from transforms.core import storage
from transforms.core.errors import ConfigError
from transforms.core.scratch import scratch_folder

BASE = "vit_base_patch16_224"
"""timm's name of the class; `model_args` turn it into any other size."""


def export(path: str, out: str, which: Literal["teacher", "student"] = "teacher") -> str:
    """Write the encoder of a checkpoint as a timm model.

    Args:
        path: A checkpoint, or the folder of a training or run.
        out: Folder or URL; what stands there under the same names is replaced.
        which: Whose weights.

    Returns:
        URL of the checkpoint.

    Raises:
        StorageError: A file cannot be read or written.
        ConfigError: There is no encoder of ours in it, or timm gives other features; nothing is
            written then.
    """
    from safetensors.torch import save

    with find_checkpoint(path) as checkpoint:
        encoder, config = load_encoder(checkpoint, which)
    weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    text = json.dumps(timm_config(config), indent=2, sort_keys=True)
    files = {
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "config.json": text.encode("utf-8"),
    }
    with scratch_folder() as scratch:
        for name, content in files.items():
            storage.replace_bytes(content, storage.join(scratch, name))
        _check_features(encoder, config, scratch)
    for name, content in files.items():
        storage.replace_bytes(content, storage.join(out, name))
    return checkpoint.url


def timm_config(config: EncoderConfig) -> dict[str, Any]:
    """What timm's `config.json` says about the encoder."""
    return {
        "architecture": BASE,
        "num_classes": 0,
        "num_features": config.width,
        "global_pool": "token",
        "model_args": {k: v for k, v in architecture(config).items() if k != "num_classes"},
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, config.image_size, config.image_size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(config.mean),
            "std": list(config.std),
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


@torch.inference_mode()
def _check_features(encoder: nn.Module, config: EncoderConfig, folder: str) -> None:
    """The exported model must give the very features of the checkpoint."""
    import timm

    images = torch.randn(2, 3, config.image_size, config.image_size)
    exported = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours: Any = encoder
    if not torch.equal(exported.forward_features(images), ours.forward_features(images)):
        raise ConfigError("timm gives other features than the checkpoint: nothing was exported")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = cli.command_parser("trainer.export", "Write an encoder as a timm model folder.")
    parser.add_argument("checkpoint", help="a checkpoint, or the folder of a training or run")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument(
        "--which",
        choices=("teacher", "student"),
        default="teacher",
        help="whose weights; without a teacher (StableRep, SimCLR) both are the student's",
    )
    parsed = parser.parse_args(arguments)
    cli.show_log()

    def work() -> str:
        url = export(parsed.checkpoint, parsed.out, parsed.which)
        return f"Exported the encoder of {url} to {parsed.out}"

    return cli.run_command(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
