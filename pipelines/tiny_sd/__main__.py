"""Train tiny-sd on drawings from npm packages: `python -m pipelines.tiny_sd [STEP ...]`.

Steps, in order: `fetch` the drawings, train the `autoencoder`, train the `diffusion`, `export` the
model folder, `score` it. An interrupted training continues from its checkpoint, and a finished one
is not repeated.
"""

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from pipelines.tiny_sd.composites import Composer

STEPS = ("fetch", "autoencoder", "diffusion", "export", "score")
MODEL_FOLDER = Path(__file__).parents[1] / "data" / "tiny_sd"


def main() -> None:
    """Parse the command line and run the steps."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.tiny_sd", description=__doc__)
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help=f"some of {', '.join(STEPS)}; default: all"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(".cache/tiny_sd"),
        help="folder for drawings and checkpoints",
    )
    parser.add_argument(
        "--out", type=Path, default=MODEL_FOLDER, help="model folder to write or to score"
    )
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="number of training processes"
    )
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.steps) - set(STEPS))
    if unknown:
        parser.error(f"unknown steps {unknown}: expected some of {', '.join(STEPS)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for step in STEPS:
        if not arguments.steps or step in arguments.steps:
            run_step(step, arguments.work, arguments.out, arguments.processes)


def run_step(step: str, work: Path, out: Path, num_processes: int) -> None:
    """Run one step.

    Args:
        step: One of `STEPS`.
        work: Folder of the drawings and checkpoints.
        out: Model folder to write or to score.
        num_processes: Number of training processes.
    """
    from pipelines.tiny_sd import drawings
    from pipelines.tiny_sd.training import run_processes

    if step == "fetch":
        drawings.fetch(work / "npm")
    elif step == "autoencoder":
        run_processes(autoencoder_task, num_processes, work)
    elif step == "diffusion":
        run_processes(diffusion_task, num_processes, work)
    elif step == "export":
        export_step(work, out)
    else:
        from pipelines.tiny_sd.score import score, table

        print(table(score(out, make_composer(work), work)))


def make_composer(work: Path) -> "Composer":
    """Load the fetched drawings into a composer."""
    from pipelines.tiny_sd.composites import Composer
    from pipelines.tiny_sd.drawings import load_concepts, load_drawings

    concepts = load_concepts()
    drawings = load_drawings(work / "npm", concepts)
    return Composer(drawings, [c.name for c in concepts], seed=0)


def autoencoder_task(work: Path) -> None:
    """Train the autoencoder; runs in each training process."""
    from pipelines.tiny_sd.autoencoder import AutoencoderConfig, train_autoencoder

    train_autoencoder(make_composer(work), AutoencoderConfig(), work / "autoencoder.pt")


def finished_autoencoder(work: Path, composer: "Composer") -> "AutoencoderKL":
    """Load the trained autoencoder and standardise its latents."""
    from pipelines.tiny_sd.autoencoder import AutoencoderConfig, build_autoencoder
    from pipelines.tiny_sd.latents import standardise_latents
    from pipelines.tiny_sd.training import load_checkpoint

    autoencoder = build_autoencoder(AutoencoderConfig()).eval()
    load_checkpoint(work / "autoencoder.pt", {"model": autoencoder})
    standardise_latents(autoencoder, composer)
    return autoencoder


def diffusion_task(work: Path) -> None:
    """Train the UNet and the text encoder; runs in each training process."""
    from pipelines.tiny_sd.diffusion import train_diffusion
    from pipelines.tiny_sd.drawings import load_concepts
    from pipelines.tiny_sd.latents import LatentCache
    from pipelines.tiny_sd.networks import DiffusionConfig
    from pipelines.tiny_sd.text_encoder import TextConfig, load_tokenizer

    composer, config, text = make_composer(work), DiffusionConfig(), TextConfig()
    cache = LatentCache(
        finished_autoencoder(work, composer), composer, config.num_cached, config.seed
    )
    tokenizer = load_tokenizer(composer.concepts, text, work / "tokenizer")
    num_first = sum(c.wave == "first" for c in load_concepts())
    path = work / "diffusion.pt"
    train_diffusion(cache, composer.concepts, tokenizer, config, text, path, num_first)


def export_step(work: Path, out: Path) -> None:
    """Write the model folder from the latest checkpoints, even if the training is not finished."""
    from pipelines.tiny_sd.export import assemble, export
    from pipelines.tiny_sd.networks import DiffusionConfig, Networks, build_scheduler
    from pipelines.tiny_sd.text_encoder import TextConfig, load_tokenizer
    from pipelines.tiny_sd.training import load_checkpoint

    composer, config, text = make_composer(work), DiffusionConfig(), TextConfig()
    autoencoder = finished_autoencoder(work, composer)
    tokenizer = load_tokenizer(composer.concepts, text, work / "tokenizer")
    latent_channels = autoencoder.config.latent_channels
    networks = Networks(tokenizer, len(composer.concepts), config, text, latent_channels).eval()
    load_checkpoint(work / "diffusion.pt", {"ema": networks})
    parts = (networks.text_encoder, tokenizer, networks.unet, build_scheduler())
    export(assemble(autoencoder, *parts), out)


if __name__ == "__main__":
    main()
