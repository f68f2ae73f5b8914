"""Fixtures of all tests of the trainer."""

import signal
from collections.abc import Iterator
from functools import partial

import pytest

from trainer.signals import STOP_SIGNALS


@pytest.fixture(autouse=True)
def _stops_as_before() -> Iterator[None]:
    """Restore signal handlers: a failed training ignores stop signals, and so do its children."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def no_generated_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `torch.compile` trace, differentiate and partition graphs, but generate no code.

    Torch's own kernels run the graphs. Generating and compiling C++ for them takes minutes.
    """
    import torch

    from trainer.losses import fused

    backend = "aot_eager_decomp_partition"
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    fused._compiled.cache_clear()
    torch._dynamo.reset()
    yield
    fused._compiled.cache_clear()
    torch._dynamo.reset()
