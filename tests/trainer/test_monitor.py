"""The metrics file: whole lines, every step once, on any storage."""

import json
from pathlib import Path

from trainer.monitor import MetricsLog
from transforms.core import storage


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
