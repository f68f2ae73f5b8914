"""Scores of a tiny-sd folder: how often a picture shows what its caption names.

The judge is trained on real composites of the training sets. Nothing here is used in training.
`score` writes `scores.yaml`, whose table is also in the model card, and `contact_sheet.jpg`, the
four judged pictures of every concept, to the folder.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.tiny_sd.composites import Composer
from pipelines.tiny_sd.judge import Judge, name, stage_features, train_judge
from pipelines.tiny_sd.scenes import BACKGROUNDS, COLOURS, SCENES

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

GUIDANCE = 2.5
"""Classifier-free guidance, the method's value."""

NUM_SAMPLING_STEPS = 8
"""Steps of DPM-Solver++; they give the quality of 12 steps of DDIM, the folder's own sampler."""

SEEDS = 4
"""Pictures per caption."""

SCORES_FILE, SHEET_FILE = "scores.yaml", "contact_sheet.jpg"

Pictures = NDArray[np.uint8]
Scores = dict[str, str]


def load_pipeline(folder: Path) -> "StableDiffusionPipeline":
    """Load the model folder in single precision, with the recommended sampler."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(
    pipeline: "StableDiffusionPipeline", captions: list[str], batch_size: int = 32
) -> Pictures:
    """Paint one picture per caption, number i from seed i: uint8 [N, 64, 64, 3]."""
    pictures = []
    for begin in range(0, len(captions), batch_size):
        texts = captions[begin : begin + batch_size]
        generators = [torch.Generator().manual_seed(begin + i) for i in range(len(texts))]
        painted = pipeline(
            texts,
            num_inference_steps=NUM_SAMPLING_STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="np",
        ).images
        pictures.append((painted * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def score(folder: Path, composer: Composer, work: Path) -> Scores:
    """Paint and judge pictures; write the scores and the contact sheet to `folder`.

    Args:
        folder: Model folder.
        composer: Source of training composites, for the judge and for comparison.
        work: Folder of the judge's checkpoint.

    Returns:
        Measures and their values, in words.
    """
    judge = train_judge(composer, work / "judge.pt")
    pipeline = load_pipeline(folder)
    names = composer.concepts
    truth = np.repeat(np.arange(len(names)), SEEDS)
    begin = time.perf_counter()
    plain = paint(pipeline, [f"a {names[i]}" for i in truth])
    rate = len(plain) / (time.perf_counter() - begin)
    contact_sheet(plain, names, folder / SHEET_FILE)
    free_texts, free_truth = load_free_captions(names)
    fresh = composer.sample(2048, np.random.default_rng(8))
    scores = {
        "concept, fresh composites of drawings": _accuracy(judge, fresh.pictures, fresh.concepts),
        "concept, `a CONCEPT`": _accuracy(judge, plain, truth),
        "concept, free captions": _accuracy(judge, paint(pipeline, free_texts), free_truth),
    }
    scores |= _background_scores(judge, pipeline, names)
    drawn = composer.sample(len(truth), np.random.default_rng(9), truth).pictures
    for label, pictures in (("pictures of `a CONCEPT`", plain), ("composites of drawings", drawn)):
        scores[f"distance between {SEEDS} {label}, pixels"] = f"{pixel_distance(pictures):.3f}"
        scores[f"distance between {SEEDS} {label}, the judge's features"] = (
            f"{feature_distance(judge, pictures):.3f}"
        )
    sampler = f"{type(pipeline.scheduler).__name__}, {NUM_SAMPLING_STEPS} steps"
    scores[f"pictures a second, {torch.get_num_threads()} thread(s), {sampler}"] = f"{rate:.1f}"
    scores["least often named"] = _weakest(judge, plain, truth, names)
    (folder / SCORES_FILE).write_text(yaml.safe_dump(scores, sort_keys=False, width=100))
    return scores


def table(scores: Scores) -> str:
    """Return the scores as the Markdown table of the model card."""
    rows = [f"| {label} | {value} |" for label, value in scores.items()]
    return "\n".join(["| measure | value |", "|---|---|", *rows])


def load_free_captions(names: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Read the captions of `free_captions.yaml`, and the concept index of each."""
    by_concept = yaml.safe_load(Path(__file__).with_name("free_captions.yaml").read_text())
    pairs = [(text, names.index(n)) for n, texts in by_concept.items() for text in texts]
    return [text for text, _ in pairs], np.array([index for _, index in pairs])


def pixel_distance(pictures: Pictures) -> float:
    """Return the mean root-mean-square pixel distance (0..1) in groups of `SEEDS` neighbours."""
    groups = pictures.reshape(-1, SEEDS, pictures[0].size).astype(np.float64) / 255
    distances = [np.sqrt(((groups[:, i] - groups[:, j]) ** 2).mean(axis=1)) for i, j in _pairs()]
    return float(np.mean(distances))


def feature_distance(judge: Judge, pictures: Pictures) -> float:
    """Return the mean distance in groups of `SEEDS` neighbours, after LPIPS (Zhang et al., 2018).

    The features are those of the judge, with unit norm at every place of every stage. Squared
    distances are averaged over places and stages, without learnt weights.
    """
    distances = []
    for features in stage_features(judge, pictures):  # [N, C, places]
        groups = features.reshape(-1, SEEDS, *features.shape[1:])
        for i, j in _pairs():
            distances.append((groups[:, i] - groups[:, j]).pow(2).sum(dim=1).mean().item())
    return float(np.mean(distances))


def contact_sheet(pictures: Pictures, names: list[str], path: Path, columns: int = 6) -> None:
    """Save the `SEEDS` pictures of each concept under its name, `columns` concepts in a row."""
    side, label = pictures.shape[1], 14
    rows = -(-len(names) // columns)
    width = SEEDS * side + 8
    sheet = Image.new("RGB", (columns * width, rows * (side + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, concept in enumerate(names):
        x, y = i % columns * width, i // columns * (side + label)
        draw.text((x, y), concept, fill="black")
        strip = np.concatenate(list(pictures[SEEDS * i : SEEDS * (i + 1)]), axis=1)
        sheet.paste(Image.fromarray(strip), (x, y + label))
    sheet.save(path, quality=85)


def _pairs() -> list[tuple[int, int]]:
    return [(i, j) for i in range(SEEDS) for j in range(i)]


def _accuracy(judge: Judge, pictures: Pictures, truth: NDArray[np.int64]) -> str:
    ranked, _ = name(judge, pictures)
    hits = ranked == truth[:, None]
    return (
        f"top-1 {hits[:, 0].mean():.1%}, top-5 {hits[:, :5].any(axis=1).mean():.1%} of {len(truth)}"
    )


def _background_scores(
    judge: Judge, pipeline: "StableDiffusionPipeline", names: list[str]
) -> Scores:
    """Measure how often the judge sees the named background, for colours and for scenes."""
    shown = names[:: max(1, len(names) // 16)]
    scores = {}
    for kind, members, frame in (
        ("colour", list(COLOURS), "a {} on a {} background"),
        ("scene", list(SCENES), "a {}, in the {}"),
    ):
        pictures = paint(pipeline, [frame.format(c, b) for b in members for c in shown])
        truth = np.repeat([BACKGROUNDS.index(b) for b in members], len(shown))
        hits = (name(judge, pictures)[1][:, 0] == truth).reshape(len(members), -1).mean(axis=1)
        each = ", ".join(f"{b} {h:.0%}" for b, h in zip(members, hits, strict=True))
        scores[f"background, named {kind}"] = f"top-1 {hits.mean():.1%} ({each})"
    return scores


def _weakest(judge: Judge, pictures: Pictures, truth: NDArray[np.int64], names: list[str]) -> str:
    hits = (name(judge, pictures)[0][:, 0] == truth).reshape(-1, SEEDS).sum(axis=1)
    order = np.argsort(hits, kind="stable")[:12]
    return ", ".join(f"{names[i]} ({hits[i]} of {SEEDS})" for i in order)
