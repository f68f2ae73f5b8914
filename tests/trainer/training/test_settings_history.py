"""Changes of settings on a run are recorded with the step from which on they apply."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.training_runs import command, make_run
from trainer.config import CHANGEABLE
from trainer.training.step import Training
from transforms.core.exit_codes import RESTART, UNFINISHED


def stop_at(step: int, run: Path, *overrides: str) -> None:
    """Train up to a step."""
    update = Training.update

    def interrupted(self: Training, batch: Any) -> None:
        update(self, batch)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "update", interrupted)
        assert command(run, "steps=8", *overrides) == RESTART


def noted(run: Path) -> list[tuple[int, float | None]]:
    """Return (from step, clip_norm) of each entry."""
    entries = yaml.safe_load((run / "train" / "settings.yaml").read_text())
    assert all(set(entry["settings"]) == set(CHANGEABLE) for entry in entries)
    return [(entry["from_step"], entry["settings"]["optim.clip_norm"]) for entry in entries]


def test_a_change_is_recorded_with_its_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path)
    caplog.set_level("INFO")
    stop_at(2, run)
    stop_at(4, run, "optim.clip_norm=0.1")
    assert "From step 2 on, optim.clip_norm is 0.1 (was None)" in caplog.text
    assert noted(run) == [(0, None), (2, 0.1)]
    stop_at(5, run, "optim.clip_norm=0.1")
    assert noted(run) == [(0, None), (2, 0.1)]
    assert command(run, "steps=8") == 0
    assert noted(run) == [(0, None), (2, 0.1), (5, None)]


def test_a_change_without_a_later_checkpoint_is_forgotten(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    stop_at(2, run)
    stop_at(4, run, "optim.clip_norm=0.1")
    (run / "train" / "checkpoints" / "step-000000004.pt").unlink()
    assert command(run, "steps=8", "precision=bf16") == 0
    assert noted(run) == [(0, None), (2, None)]


def test_a_damaged_history_is_a_sentence_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    stop_at(2, run)
    history = run / "train" / "settings.yaml"
    sound = history.read_bytes()
    for damage in (
        b"\xff\x00",
        b"- {",
        b"5",
        b"- 5",
        b"[{from_step: a}]",
        sound[: len(sound) // 2],
    ):
        history.write_bytes(damage)
        assert command(run, "steps=8") == UNFINISHED, damage
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"{history} is damaged ("), last
        assert "delete it, then run the same command to continue" in last
    history.unlink()
    assert command(run, "steps=8") == 0
    assert noted(run) == [(2, None)]
