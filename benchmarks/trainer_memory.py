"""Peak memory of one rank's losses at the paper's size on 8 ranks, chunked and dense.

    python -m benchmarks.trainer_memory

8,192 captions of 4 images on 8 ranks are 4,096 images a rank: 4,096 global and 16,384 local
anchors against 32,768 keys, and 200,704 masked tokens against 65,536 prototypes. Each case computes
value and gradient in a new process, on a part of the rows, since all of them do not fit into the
memory of a small machine. The peak of dense matrices grows with the rows; that of chunks does not.
"""

import argparse
import multiprocessing
import resource
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.losses.contrastive import multi_positive_loss
from trainer.losses.ibot import chunked_ibot_loss, ibot_loss, teacher_targets, token_weights
from trainer.losses.sinkhorn import sinkhorn_knopp

WIDTH = 256
NUM_KEYS, ANCHORS = 32_768, 16_384
NUM_PROTOTYPES, TOKENS = 65_536, 200_704
TOKENS_PER_IMAGE = 98


def vectors(number: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(number, WIDTH, generator=generator)
    return torch.nn.functional.normalize(values, dim=1).requires_grad_(seed == 0)


def contrastive(rows: int, chunk_size: int | None) -> Tensor:
    key_ids = torch.arange(NUM_KEYS) // 4
    anchors, keys = vectors(rows, 0), vectors(NUM_KEYS, 1)
    return multi_positive_loss(
        anchors, keys, torch.arange(rows) // 16, key_ids, temperature=0.08, chunk_size=chunk_size
    )


def dense_contrastive(rows: int, _: int | None) -> Tensor:
    """Compute the loss from whole masks and logits, with plain autograd."""
    anchors, keys = vectors(rows, 0), vectors(NUM_KEYS, 1)
    positives = (torch.arange(rows)[:, None] // 16 == torch.arange(NUM_KEYS) // 4).float()
    shares = positives / positives.sum(dim=1, keepdim=True)
    return -(shares * (anchors @ keys.T / 0.08).log_softmax(dim=1)).sum(dim=1).mean()


def ibot(rows: int, chunk_size: int | None) -> Tensor:
    targets = teacher_targets(
        vectors(rows, 1), vectors(NUM_PROTOTYPES, 2), temperature=0.07, chunk_size=chunk_size
    )
    weights = token_weights(torch.arange(rows) // TOKENS_PER_IMAGE)
    return chunked_ibot_loss(
        vectors(rows, 0),
        vectors(NUM_PROTOTYPES, 3),
        targets,
        weights,
        temperature=0.1,
        chunk_size=chunk_size,
    )


def dense_ibot(rows: int, _: int | None) -> Tensor:
    """Compute the loss from whole targets and logits, with plain autograd."""
    targets = sinkhorn_knopp(vectors(rows, 1) @ vectors(NUM_PROTOTYPES, 2).T, temperature=0.07)
    logits = vectors(rows, 0) @ vectors(NUM_PROTOTYPES, 3).T
    return ibot_loss(logits, targets, torch.arange(rows) // TOKENS_PER_IMAGE, temperature=0.1)


Case = tuple[str, Callable[[int, int | None], Tensor], int, int | None, int]
CASES: list[Case] = [
    ("contrastive, chunks of 1,024", contrastive, 2048, 1024, ANCHORS),
    ("contrastive, dense", dense_contrastive, 2048, None, ANCHORS),
    ("iBOT, chunks of 2,048", ibot, 4096, 2048, TOKENS),
    ("iBOT, dense", dense_ibot, 1024, None, TOKENS),
]


def peak_gib(loss: Callable[[int, int | None], Tensor], rows: int, chunk_size: int | None) -> float:
    """Return how much value and gradient raise the peak memory of this process."""

    def largest() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    torch.set_num_threads(1)
    before = largest()
    loss(rows, chunk_size).backward()
    return largest() - before


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    context = multiprocessing.get_context("spawn")
    for name, loss, rows, chunk_size, wanted in CASES:
        with context.Pool(1) as pool:
            peak = pool.apply(peak_gib, (loss, rows, chunk_size))
        line = f"{name:30s} {peak:6.2f} GiB measured with {rows:,} rows"
        if chunk_size is None:
            line += f"; {peak * wanted / rows:8.1f} GiB with all {wanted:,}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
