"""The judge of tiny-sd: a small convolutional network that is trained on real composites only.

It predicts the concept and the background of a picture. It is never trained on generated pictures,
so its accuracy on them measures how well they show what their captions name.
"""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.tiny_sd.autoencoder import to_tensor
from pipelines.tiny_sd.composites import Composer
from pipelines.tiny_sd.scenes import BACKGROUNDS
from pipelines.tiny_sd.training import (
    Clock,
    cosine_rate,
    half_precision,
    load_checkpoint,
    save_checkpoint,
)

log = logging.getLogger(__name__)

NUM_STEPS = 1200
BATCH_SIZE = 64
WIDTHS = (32, 64, 128, 192)
SEED = 0


class Judge(nn.Module):
    """Four stages of two convolutions, each of which halves the side, and two linear heads."""

    def __init__(self, num_concepts: int) -> None:
        """Build the untrained judge."""
        super().__init__()
        stages = []
        channels = 3
        for width in WIDTHS:
            layers: list[nn.Module] = []
            for stride, entry in ((2, channels), (1, width)):
                layers.append(nn.Conv2d(entry, width, 3, stride, 1, bias=False))
                layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            stages.append(nn.Sequential(*layers))
            channels = width
        self.body = nn.Sequential(*stages)
        self.concept = nn.Linear(channels, num_concepts)
        self.background = nn.Linear(channels, len(BACKGROUNDS))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of concepts and backgrounds of `pictures` [N, 3, 64, 64] in -1..1."""
        features = self.body(pictures).mean(dim=(2, 3))
        return self.concept(features), self.background(features)


def soften(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur some pictures and add noise, so that the judge does not rely on crisp edges.

    Args:
        pictures: [N, 3, 64, 64].
        rng: Random generator of the amounts.
    """
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.from_numpy(rng.uniform(0, 1, len(pictures)) * (rng.random(len(pictures)) < 0.6))
    mixed = torch.lerp(pictures, blurred, share.float()[:, None, None, None])
    noise = torch.from_numpy(rng.normal(0, 0.05, pictures.shape).astype(np.float32))
    return mixed + noise


def train_judge(composer: Composer, path: Path) -> Judge:
    """Train the judge on fresh composites, or load the finished one from `path`."""
    torch.manual_seed(SEED)
    judge = Judge(len(composer.concepts)).train()
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.05)
    state = {"model": judge, "optimizer": optimizer}
    start = load_checkpoint(path, state)
    clock = Clock(NUM_STEPS, BATCH_SIZE, start)
    for step in range(start, NUM_STEPS):
        rng = np.random.default_rng([SEED, 7, step])
        batch = composer.sample(BATCH_SIZE, rng)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, NUM_STEPS, 50, 2e-3)
        with half_precision():
            concepts, backgrounds = judge(soften(to_tensor(batch.pictures), rng))
        loss = F.cross_entropy(concepts.float(), torch.from_numpy(batch.concepts))
        loss = loss + 0.5 * F.cross_entropy(
            backgrounds.float(), torch.from_numpy(batch.backgrounds)
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if clock.tick(loss.item()):
            log.info("judge %s, loss %.3f", clock, clock.mean)
    save_checkpoint(path, state, NUM_STEPS)
    return judge.eval()


@torch.no_grad()
def stage_features(judge: Judge, pictures: NDArray[np.uint8]) -> list[Tensor]:
    """Return each stage's features of uint8 pictures [N, 64, 64, 3]: [N, C, places], unit norm."""
    features, seen = to_tensor(pictures), []
    for stage in judge.body:
        features = stage(features)
        seen.append(F.normalize(features, dim=1).flatten(2))
    return seen


@torch.no_grad()
def name(judge: Judge, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank the concepts and backgrounds of uint8 pictures [N, 64, 64, 3], the likeliest first.

    Returns:
        Concept indices [N, concepts] and background indices [N, backgrounds].
    """
    concepts, backgrounds = judge(to_tensor(pictures))
    return concepts.argsort(1, descending=True).numpy(), backgrounds.argsort(
        1, descending=True
    ).numpy()
