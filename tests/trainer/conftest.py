"""Fixtures of all tests of the trainer."""

import signal
from collections.abc import Iterator

import pytest

from trainer.signals import STOP_SIGNALS


@pytest.fixture(autouse=True)
def _stops_as_before() -> Iterator[None]:
    """Restore signal handlers: a failed training ignores stop signals, and so do its children."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
