"""The metrics file: whole lines, each step once, on any storage; errors are one sentence."""

import errno
import json
import os
from pathlib import Path

import pytest

from trainer.monitor.metrics_log import MetricsLog
from transforms.core import storage
from transforms.core.errors import StorageError


def steps(url: str) -> list[int]:
    lines = storage.read_bytes(url).decode().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_continued_training_writes_every_step_once(any_storage: str) -> None:
    url = f"{any_storage}/metrics.jsonl"
    first = MetricsLog(url, 0)
    for step in range(5):
        first.write(step, {"loss": 1.0 / (step + 1)})
    first.flush()
    second = MetricsLog(url, 3)
    for step in range(3, 6):
        second.write(step, {"loss": 0.0})
    second.flush()
    assert steps(url) == [0, 1, 2, 3, 4, 5]


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.5}\n{"step": 1, "lo')
    MetricsLog(str(path), 7).write(7, {"loss": 1.25})
    assert steps(str(path)) == [0, 7]


def test_what_a_power_cut_damaged_is_dropped(any_storage: str) -> None:
    url = f"{any_storage}/metrics.jsonl"
    lines = ['{"step": 0, "loss": 1.5}', "\0\0\0", '{"loss": 1.5}', "7", "", '{"step": 3}', "\x80"]
    storage.replace_bytes("".join(line + "\n" for line in lines).encode("latin-1"), url)
    log = MetricsLog(url, 4)
    log.write(4, {"loss": 1.25})
    log.flush()
    assert steps(url) == [0, 3, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(str(path), 0)
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"cannot write .*jsonl: the disk is full"):
        log.write(0, {"loss": 1.0})
    path.unlink()
    with pytest.raises(StorageError, match=r"cannot sync .*jsonl: there is no such file"):
        log.flush()
    path.touch()

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"cannot sync .*jsonl: Input/output error"):
        log.flush()
