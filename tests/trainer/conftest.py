"""What every test of the trainer needs."""

import signal
from collections.abc import Iterator

import pytest

from trainer.signals import STOP_SIGNALS


@pytest.fixture(autouse=True)
def _stops_as_before() -> Iterator[None]:
    """A training that failed ignores stop signals, and processes that are started inherit that."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
