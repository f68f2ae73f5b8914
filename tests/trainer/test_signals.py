"""Stop signals: heard once, however often they come; only a second Ctrl-C insists."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess, SpawnProcess

import pytest

from trainer.signals import STOP_SIGNALS, held, stop_signals


@pytest.fixture
def unheard() -> Iterator[list[int]]:
    """Numbers of signals that nobody listened to."""
    numbers: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: numbers.append(number))
        for number in STOP_SIGNALS
    }
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_one_that_comes_again_cuts_off_nothing(unheard: list[int], number: signal.Signals) -> None:
    """As when a control group is signalled, and then the launcher signals its ranks."""
    with stop_signals() as received:
        for _ in range(3):
            os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert received == [number.name] * 3
    assert unheard == []


def test_a_second_ctrl_c_insists(unheard: list[int]) -> None:
    with stop_signals() as received:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert received == ["SIGINT"]
    assert unheard == [signal.SIGINT]


def test_where_none_came_all_is_as_before(unheard: list[int]) -> None:
    with stop_signals():
        pass
    for number in STOP_SIGNALS:
        os.kill(os.getpid(), number)
    assert unheard == list(STOP_SIGNALS)


def _reply(pipe: Connection) -> None:
    pipe.send(pipe.recv())


@pytest.mark.parametrize("start", [ForkProcess, SpawnProcess])
def test_processes_started_while_signals_are_held_never_get_any(
    unheard: list[int], start: type[ForkProcess | SpawnProcess]
) -> None:
    here, there = multiprocessing.Pipe()
    process = start(target=_reply, args=(there,))
    with held():
        process.start()
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
            os.kill(process.pid or 0, number)
        time.sleep(0.05)
        assert unheard == [], "only held back"
    assert sorted(unheard) == sorted(STOP_SIGNALS)
    for number in STOP_SIGNALS:
        os.kill(process.pid or 0, number)
    here.send("alive")
    assert here.recv() == "alive"
    process.join()
    assert process.exitcode == 0
