"""What a config takes from the environment is nowhere in a training, and has its effect."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.training_runs import checkpoints, command, final_state, make_run, write_config
from trainer import export, replay
from trainer.checkpoints.files import list_checkpoints, load_checkpoint, write_state
from trainer.monitor.monitor import Monitor
from transforms.core import storage
from transforms.core.exit_codes import NOT_FINITE

SECRET = "s3cr3t-of-this-run"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a run whose config takes settings of all kinds from the environment."""
    monkeypatch.setenv("CACHE", SECRET)
    monkeypatch.setenv("SEED", "918273")  # The learning rate is in the metrics: no secret.
    monkeypatch.setenv("RATE", "0.00091827")
    monkeypatch.setenv("WIDTH", "12")
    run = make_run(tmp_path / "run")
    write_config(run, loader={"num_workers": 0, "cache_folder": "/tmp/${oc.env:CACHE}"})
    return run


SETTINGS = [
    "seed=${oc.env:SEED}",
    "optim.learning_rate=${oc.env:RATE}",
    "model.width=${oc.env:WIDTH}",
]


def test_values_are_used_and_references_are_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(run, *SETTINGS) == 0
    for name in storage.list_files(str(run / "train")):
        content = (run / "train" / name).read_bytes()
        assert SECRET.encode() not in content and b"918273" not in content, name
    (entry,) = yaml.safe_load((run / "train" / "settings.yaml").read_text())
    assert entry["settings"]["optim.learning_rate"]["from"] == "${oc.env:RATE}"
    config = final_state(run)["config"]
    assert config == yaml.safe_load((run / "train" / "run.yaml").read_text())["config"]
    assert config["seed"] == "${oc.env:SEED}"
    assert config["loader"]["cache_folder"] == "/tmp/${oc.env:CACHE}"
    assert command(run, *SETTINGS) == 0
    assert "Trained already" in capfd.readouterr().out

    monkeypatch.setenv("SEED", "918274")
    assert command(run, *SETTINGS) == 2
    error = capfd.readouterr().err
    assert "seed: " in error and "91827" not in error
    assert SECRET not in error


def test_trackers_get_references(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Mapping[str, Any]] = []

    class Noting(Monitor):
        def __init__(self, config: Any, folder: str, resolved: Any, **numbers: int) -> None:
            given.append(resolved)
            super().__init__(config, folder, resolved, **numbers)

    monkeypatch.setattr("trainer.training.loop.Monitor", Noting)
    assert command(run, *SETTINGS) == 0
    assert [config["seed"] for config in given] == ["${oc.env:SEED}"]


def test_the_note_of_a_step_that_is_not_finite_holds_references(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATE", "1e38")
    assert command(run, *SETTINGS) == NOT_FINITE
    note = json.loads((run / "train" / "not-finite.json").read_text())
    assert note["settings"]["seed"]["from"] == "${oc.env:SEED}"
    before = (run / "train" / "metrics.jsonl").read_bytes()
    assert command(run, *SETTINGS) == NOT_FINITE
    assert (run / "train" / "metrics.jsonl").read_bytes() == before, "at once, by the note"
    monkeypatch.setenv("RATE", "0.0009")
    assert command(run, *SETTINGS) == 0


def test_a_changed_value_of_a_setting_that_may_change_is_noted(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(run, *SETTINGS, "checkpoint.every_steps=2", "checkpoint.keep=2") == 0
    Path(list_checkpoints(checkpoints(run))[4]).unlink()
    monkeypatch.setenv("RATE", "0.00082736")
    assert command(run, *SETTINGS) == 0
    entries = yaml.safe_load((run / "train" / "settings.yaml").read_text())
    assert [entry["from_step"] for entry in entries] == [0, 2]
    assert [e["settings"]["optim.learning_rate"]["from"] for e in entries] == ["${oc.env:RATE}"] * 2


def test_checkpoints_are_read_with_the_environment(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(run, *SETTINGS, "checkpoint.every_steps=3", "checkpoint.keep=2") == 0
    before = load_checkpoint(list_checkpoints(checkpoints(run))[3])
    file = str(tmp_path / "replay-step-3.pt")
    write_state({**before, "caption_ids": []}, file)
    assert replay.main([file]) == 2
    assert "other captions" in capfd.readouterr().err, "its config was read"
    assert export.main([str(run), str(tmp_path / "out")]) == 0

    monkeypatch.delenv("SEED")
    assert export.main([str(run), str(tmp_path / "again")]) == 0, "the shape needs no seed"
    monkeypatch.delenv("WIDTH")
    assert export.main([str(run), str(tmp_path / "third")]) == 2
    assert "key 'model.width' is '${oc.env:WIDTH}', which cannot" in capfd.readouterr().err
