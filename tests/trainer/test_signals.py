"""Stop signals act once, however often they come; only a second Ctrl-C interrupts at once."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess, SpawnProcess
from pathlib import Path

import pytest

from tests.support.training_runs import command, write_config
from trainer import distributed, train
from trainer.signals import STOP_SIGNALS, block_stops, stop_signals
from transforms.core.errors import StorageError
from transforms.core.exit_codes import UNFINISHED


@pytest.fixture
def unheard() -> list[int]:
    """Return a list that collects the numbers of signals neither handled nor ignored."""
    numbers: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: numbers.append(number))
    return numbers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_one_that_comes_again_cuts_off_nothing(unheard: list[int], number: signal.Signals) -> None:
    """For instance a control group is signalled, and then the launcher signals its ranks."""
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


def test_after_an_error_only_ctrl_c_is_heard(unheard: list[int]) -> None:
    with pytest.raises(RuntimeError), stop_signals():
        raise RuntimeError
    for number in STOP_SIGNALS:
        os.kill(os.getpid(), number)
    assert unheard == [signal.SIGINT]


def test_a_training_that_failed_leaves_with_its_own_code(
    unheard: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other ranks may have left because of the error, and then the launcher ends all ranks."""

    def fail(*_: object) -> str:
        raise StorageError(None, "the disk is full")

    monkeypatch.setattr(train, "train", fail)
    monkeypatch.setattr(distributed, "abort", lambda: os.kill(os.getpid(), signal.SIGTERM))
    write_config(tmp_path)
    assert command(tmp_path) == UNFINISHED
    assert unheard == []


def test_where_none_came_all_is_as_before(unheard: list[int]) -> None:
    with stop_signals():
        pass
    for number in STOP_SIGNALS:
        os.kill(os.getpid(), number)
    assert unheard == list(STOP_SIGNALS)


def _reply(pipe: Connection) -> None:
    for _ in range(2):
        pipe.send(pipe.recv())


@pytest.mark.parametrize("start", [ForkProcess, SpawnProcess])
def test_processes_started_while_signals_are_held_never_get_any(
    start: type[ForkProcess | SpawnProcess],
) -> None:
    here, there = multiprocessing.Pipe()
    process = start(target=_reply, args=(there,), daemon=True)
    with block_stops():
        process.start()
    try:
        for _ in range(2):
            for number in STOP_SIGNALS:
                os.kill(process.pid or 0, number)
            here.send("alive")
            assert here.poll(60)
            assert here.recv() == "alive"
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
