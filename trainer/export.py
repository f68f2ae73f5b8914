"""Command that exports an encoder as a timm model.

    python -m trainer.export CHECKPOINT OUT [--which=teacher|student]

CHECKPOINT is a checkpoint file, or the folder of a training or run (its newest checkpoint). OUT
becomes a folder with `model.safetensors` and `config.json` in timm's layout, which

    timm.create_model("local-dir:OUT", pretrained=True)

loads; mean, std and input size are in its `pretrained_cfg`. Exit code 0: the folder is written; 1:
a file cannot be read or written; 2: the checkpoint does not hold an encoder of ours, or timm's
features differ; 130: Ctrl-C.
"""

if __name__ == "__main__":
    from trainer import cli

    cli.check_temporary_folder()

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
"""Name of the architecture in timm; `model_args` changes its size."""


def export(path: str, out: str, which: Literal["teacher", "student"] = "teacher") -> str:
    """Write the encoder of a checkpoint as a timm model.

    Args:
        path: A checkpoint, or the folder of a training or run.
        out: Folder or URL to write; files of the same names are replaced.
        which: Network whose weights are exported.

    Returns:
        URL of the checkpoint.

    Raises:
        StorageError: A file cannot be read or written.
        ConfigError: The checkpoint does not hold an encoder of ours, or timm computes other
            features; nothing is written then.
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
    """Return the content of timm's `config.json` for the encoder."""
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
    """Check that the exported model computes exactly the features of the checkpoint."""
    import timm

    images = torch.randn(2, 3, config.image_size, config.image_size)
    exported = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours: Any = encoder
    if not torch.equal(exported.forward_features(images), ours.forward_features(images)):
        raise ConfigError("timm computes other features than the checkpoint: nothing was exported")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = cli.command_parser("trainer.export", "Write an encoder as a timm model folder.")
    parser.add_argument("checkpoint", help="a checkpoint, or the folder of a training or run")
    parser.add_argument("out", help="folder or URL to write")
    parser.add_argument(
        "--which",
        choices=("teacher", "student"),
        default="teacher",
        help="network to export; without a teacher (StableRep, SimCLR) always the student",
    )
    parsed = parser.parse_args(arguments)
    cli.show_log()

    def work() -> str:
        url = export(parsed.checkpoint, parsed.out, parsed.which)
        return f"Exported the encoder of {url} to {parsed.out}"

    return cli.run_command(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
