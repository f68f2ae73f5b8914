"""Memory traffic of iBOT over the matrix of masked tokens by prototypes, counted without a GPU.

    python -m benchmarks.loss_traffic

On a GPU, the elementwise work of such a loss takes as long as its memory traffic. A pass is one
read or one write of the whole matrix in float32. The script counts the tensors of every operation,
on torch's fake tensors: value and gradient of iBOT with Sinkhorn-Knopp, for 50,176 tokens (the
1,024 images of a GPU) and 65,536 prototypes.

For a compiled chain it counts every read that its kernels need, as the compiler schedules them for
a GPU (see `COMPILED`): no cache holds a row of 65,536 logits until it is read again.
"""

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import trainer_step
from benchmarks.trainer_step import Factors
from trainer.losses import fused, ibot, sinkhorn

TOKENS, PROTOTYPES, WIDTH, CHUNK = 50_176, 65_536, 256, 2048

COMPILED = {sinkhorn._column_sums: 1, sinkhorn._column_sums_of_softmax: 2, ibot._cross_entropy: 5}
"""Passes of a compiled chain. A sum over rows or columns reads the matrix once, with a running
maximum; iBOT's loss reads two matrices for the sums of their rows, reads both again, and writes the
gradient."""


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, without views and empty tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view and "empty" not in func.name():
            for tensor in tree_leaves((args, kwargs, result)):
                if isinstance(tensor, Tensor):
                    # For an expanded tensor, only the bytes that exist.
                    whole = tensor.untyped_storage().nbytes()
                    self.bytes += min(tensor.numel() * tensor.element_size(), whole)
        return result


def ours(student: Factors, teacher: Factors) -> Tensor:
    targets = ibot.teacher_targets(*teacher, temperature=0.07, chunk_size=CHUNK)
    weights = torch.empty(TOKENS)
    return ibot.chunked_ibot_loss(*student, targets, weights, temperature=0.1, chunk_size=CHUNK)


def straightforward(student: Factors, teacher: Factors) -> Tensor:
    return trainer_step.ibot_loss(student, teacher, temperature=0.1)


def passes(loss: Callable[[Factors, Factors], Tensor]) -> float:
    """Return the passes of value and gradient together."""
    with FakeTensorMode(), Traffic() as traffic:
        student, teacher = (
            (
                torch.empty(TOKENS, WIDTH, requires_grad=learned),
                torch.empty(PROTOTYPES, WIDTH, requires_grad=learned),
            )
            for learned in (True, False)
        )
        loss(student, teacher).backward()
    return traffic.bytes / (4 * TOKENS * PROTOTYPES)


def compiled_passes() -> float:
    """Return `passes(ours)` with the traffic of chains replaced by that of compiled ones."""
    extra = 0.0

    def run(chain: Callable[..., Any], rows: tuple[Tensor, ...], *_: Tensor, **__: Any) -> Any:
        nonlocal extra
        extra += COMPILED[chain] * len(rows[0]) / TOKENS
        logits = rows[0]
        if chain is ibot._cross_entropy:
            return torch.empty(len(logits)), torch.empty_like(logits)
        return torch.empty(logits.shape[1])

    with mock.patch.object(fused, "run", run):
        return passes(ours) + extra


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    matrix = 4 * TOKENS * PROTOTYPES / 1e9
    counts = {
        "straightforward": passes(straightforward),
        "ours": passes(ours),
        "ours, compiled": compiled_passes(),
    }
    for name, count in counts.items():
        print(f"{name:16s} {count:5.1f} passes of {matrix:.1f} GB: {count * matrix:6.0f} GB")


if __name__ == "__main__":
    main()
