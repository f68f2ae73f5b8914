"""Chains of elementwise work and reductions over large tensors, compiled on request.

Run as they are, each link of a chain reads all of a tensor (logits, images) from the device's
memory, and most write it there again: several times what the matrix products around them take.
Compiled, a chain is a kernel or two. Products stay outside, with the libraries that do them best.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def run(
    chain: Callable[..., Result], rows: tuple[Tensor, ...], *others: Tensor, compiled: bool
) -> Result:
    """`chain(*rows, *others)`: one program for any number of rows.

    Args:
        chain: A function of a module, which takes and gives tensors alone: a number would make a
            program for each of its values. It may overwrite what it has made itself.
        rows: Tensors with a first dimension of the same size. Each other size that one of their
            further dimensions takes makes another program.
        others: Tensors whose shapes are the same in every call.
        compiled: Or run by torch's own kernels, one after the other.
    """
    if not compiled or len(rows[0]) < 2:  # To a compiler 0 and 1 are no numbers like any other.
        return chain(*rows, *others)
    for tensor in rows:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    result: Result = _compiled(chain)(*rows, *others)
    return result


@functools.cache
def _compiled(chain: Callable[..., Any]) -> Callable[..., Any]:
    # Not `dynamic`: else a second size of anything would make programs for all sizes, and which of
    # those that fit is run would depend on what was run before.
    return torch.compile(chain, fullgraph=True, dynamic=False)
