"""The linear probe's 18 heads trained together, compared with 18 trainings of one head.

    python -m benchmarks.linear_heads

One step each on the same images: the forward pass of a frozen ViT and the step of the heads. The
alternative is torch's own: `nn.Linear` (with `nn.BatchNorm1d` in half of the runs), cross-entropy,
autograd and `torch.optim.SGD`, with a forward pass of its own for each run. Decoding is left out;
18 runs would decode everything 18 times, too. Turns alternate; the figures are medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.evaluate.linear_heads import EPSILON, Heads
from trainer.evaluate.protocols.linear import LinearConfig
from trainer.models.vit import EncoderConfig, build_encoder

NUM_CLASSES = 1000


def single_heads(width: int, device: torch.device) -> list[tuple[nn.Module, torch.optim.SGD]]:
    """Return a head of torch and its optimiser for each learning rate, without and with norm."""
    found: list[tuple[nn.Module, torch.optim.SGD]] = []
    for normed in (False, True):
        for rate in LinearConfig().learning_rates:
            norm = nn.BatchNorm1d(width, affine=False, eps=EPSILON) if normed else nn.Identity()
            head = nn.Sequential(norm, nn.Linear(width, NUM_CLASSES)).to(device)
            found.append((head, torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)))
    return found


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the time that a function takes."""
    started = time.monotonic()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=8, help="images per step")
    parser.add_argument("--width", type=int, default=384, help="384 is ViT-S, 768 is ViT-B")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    device, width = torch.device(arguments.device), arguments.width
    shape = EncoderConfig(patch_size=16, width=width, depth=12, num_heads=width // 64)
    encoder: Any = build_encoder(shape, seed=0).to(device).eval()
    images = torch.randn(arguments.images, 3, shape.image_size, shape.image_size, device=device)
    labels = torch.randint(NUM_CLASSES, (arguments.images,), device=device)
    together = Heads(width, NUM_CLASSES, LinearConfig().learning_rates, device=device)
    alone = single_heads(width, device)

    @torch.no_grad()
    def embed() -> Tensor:
        features: Tensor = encoder.forward_features(images)[:, 0]
        return features

    def step_together() -> None:
        together.update(embed(), labels, 1.0)

    def steps_alone() -> None:
        for head, optimizer in alone:
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(embed()), labels).backward()
            optimizer.step()

    step_together()  # Warm up.
    turns = [
        (seconds(step_together, device), seconds(steps_alone, device))
        for _ in range(arguments.turns)
    ]
    ours, theirs = (statistics.median(column) for column in zip(*turns, strict=True))
    ratio = statistics.median(alone / together for together, alone in turns)
    forward = seconds(lambda: [embed() for _ in range(3)], device) / 3
    print(f"{arguments.images} images, width {width}, {NUM_CLASSES} classes, {device}")
    print(f"one forward pass           {forward:8.3f} s")
    print(f"18 heads together, a step  {ours:8.3f} s")
    print(f"18 runs, a step of each    {theirs:8.3f} s")
    print(f"ratio                      {ratio:8.1f}")


if __name__ == "__main__":
    main()
