"""Scores a tiny-sd folder: is what the caption names what the picture shows?

The judge is trained on real composites of the training sets; nothing here serves in training.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from pipelines.tiny_sd.composites import Composer
from pipelines.tiny_sd.judge import Judge, name, train_judge
from pipelines.tiny_sd.scenes import BACKGROUNDS, COLOURS, SCENES

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

GUIDANCE = 2.5
"""Classifier-free guidance, the method's value."""

NUM_SAMPLING_STEPS = 12
"""DDIM steps: the recommended setting."""

SEEDS = 4
"""Pictures per caption."""

Pictures = NDArray[np.uint8]


def load_pipeline(folder: Path) -> "StableDiffusionPipeline":
    """Load the model folder as anyone would, in single precision."""
    from diffusers import StableDiffusionPipeline

    pipeline: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(
    pipeline: "StableDiffusionPipeline", captions: list[str], batch_size: int = 32
) -> Pictures:
    """Paint one picture per caption, the i-th from seed i: uint8 [N, 64, 64, 3]."""
    pictures = []
    for begin in range(0, len(captions), batch_size):
        texts = captions[begin : begin + batch_size]
        generators = [torch.Generator().manual_seed(begin + i) for i in range(len(texts))]
        with torch.autocast("cpu", torch.bfloat16):
            painted = pipeline(
                texts,
                num_inference_steps=NUM_SAMPLING_STEPS,
                guidance_scale=GUIDANCE,
                generator=generators,
                output_type="np",
            ).images
        pictures.append((painted * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def score(folder: Path, composer: Composer, work: Path) -> str:
    """Paint, judge and tabulate; contact sheets go to `work`.

    Args:
        folder: the model folder.
        composer: makes the real pictures, for the judge and for comparison.
        work: holds the judge's checkpoint, receives the contact sheets.

    Returns:
        a Markdown table.
    """
    judge = train_judge(composer, work / "judge.pt")
    pipeline = load_pipeline(folder)
    names = composer.concepts
    truth = np.repeat(np.arange(len(names)), SEEDS)
    fresh = composer.sample(1024, np.random.default_rng(8))
    begin = time.perf_counter()
    plain = paint(pipeline, [f"a {names[i]}" for i in truth])
    rate = len(plain) / (time.perf_counter() - begin)
    free_texts, free_truth = load_free_captions(names)
    free = paint(pipeline, free_texts)
    contact_sheet(plain, work / "plain.png")
    contact_sheet(free, work / "free.png")
    rows = [("concept, fresh real pictures", _accuracy(judge, fresh.pictures, fresh.concepts))]
    rows.append(("concept, `a CONCEPT`", _accuracy(judge, plain, truth)))
    rows.append(("concept, free captions", _accuracy(judge, free, free_truth)))
    rows += _background_rows(judge, pipeline, names, work)
    real = composer.sample(len(truth), np.random.default_rng(9), truth).pictures
    rows.append(("distance between 4 pictures of a caption", f"{diversity(plain):.3f}"))
    rows.append(("distance between 4 real pictures of a concept", f"{diversity(real):.3f}"))
    rows.append((f"pictures a second, {torch.get_num_threads()} threads", f"{rate:.1f}"))
    weakest = _weakest(judge, plain, truth, names)
    table = "\n".join(f"| {label} | {value} |" for label, value in rows)
    return f"| measure | value |\n|---|---|\n{table}\n\nLeast often named: {weakest}."


def load_free_captions(names: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Read the free captions that stand beside this module, and the concept index of each."""
    by_concept = yaml.safe_load(Path(__file__).with_name("free_captions.yaml").read_text())
    pairs = [(text, names.index(n)) for n, texts in by_concept.items() for text in texts]
    return [text for text, _ in pairs], np.array([index for _, index in pairs])


def diversity(pictures: Pictures) -> float:
    """Mean root-mean-square pixel distance (0..1) within groups of `SEEDS` neighbours."""
    groups = pictures.reshape(-1, SEEDS, pictures[0].size).astype(np.float64) / 255
    pairs = [(i, j) for i in range(SEEDS) for j in range(i)]
    distances = [np.sqrt(((groups[:, i] - groups[:, j]) ** 2).mean(axis=1)) for i, j in pairs]
    return float(np.mean(distances))


def contact_sheet(pictures: Pictures, path: Path, columns: int = 32) -> None:
    """Save pictures side by side, `columns` to a row."""
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * columns, *pictures.shape[1:]), 255, np.uint8)
    sheet[: len(pictures)] = pictures
    side = pictures.shape[1]
    tiled = sheet.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    Image.fromarray(tiled.reshape(rows * side, columns * side, 3)).save(path)


def _accuracy(judge: Judge, pictures: Pictures, truth: NDArray[np.int64]) -> str:
    ranked, _ = name(judge, pictures)
    hits = ranked == truth[:, None]
    return (
        f"top-1 {hits[:, 0].mean():.1%}, top-5 {hits[:, :5].any(axis=1).mean():.1%} of {len(truth)}"
    )


def _background_rows(
    judge: Judge, pipeline: "StableDiffusionPipeline", names: list[str], work: Path
) -> list[tuple[str, str]]:
    """Measure how often the named background is seen: colours (each), then scenes (each)."""
    shown = names[:: max(1, len(names) // 16)]
    rows = []
    for kind, members, frame in (
        ("colour", list(COLOURS), "a {} on a {} background"),
        ("scene", list(SCENES), "a {}, in the {}"),
    ):
        pictures = paint(pipeline, [frame.format(c, b) for b in members for c in shown])
        contact_sheet(pictures, work / f"{kind}.png", len(shown))
        truth = np.repeat([BACKGROUNDS.index(b) for b in members], len(shown))
        hits = (name(judge, pictures)[1][:, 0] == truth).reshape(len(members), -1).mean(axis=1)
        each = ", ".join(f"{b} {h:.0%}" for b, h in zip(members, hits, strict=True))
        rows.append((f"background, named {kind}", f"top-1 {hits.mean():.1%} ({each})"))
    return rows


def _weakest(judge: Judge, pictures: Pictures, truth: NDArray[np.int64], names: list[str]) -> str:
    hits = (name(judge, pictures)[0][:, 0] == truth).reshape(-1, SEEDS).sum(axis=1)
    order = np.argsort(hits, kind="stable")[:12]
    return ", ".join(f"{names[i]} ({hits[i]} of {SEEDS})" for i in order)
