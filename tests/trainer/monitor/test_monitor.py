"""The monitor shows metrics next to the progress bar and passes them to all writers."""

import json
from pathlib import Path

import pytest

from tests.support.training_runs import command, make_run
from trainer.monitor.config import MonitorConfig
from trainer.monitor.metrics_log import MetricsLog
from trainer.monitor.monitor import Monitor
from transforms.core.errors import ConfigError, StorageError


def monitor(folder: Path, **settings: object) -> Monitor:
    config = MonitorConfig.model_validate(settings)
    return Monitor(config, str(folder), {"seed": 3}, total=100, done=40, step=2)


def test_the_bar_shows_terms_speed_and_waiting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {
        "loss": 7.1234,
        "ibot": 5.5,
        "learning_rate": 0.00123,
        "images_per_s": 500.0,
        "images_per_s_per_device": 250.0,
        "mfu": 0.421,
        "waiting": 0.03,
        "memory_gib": 61.52,
        "target_entropy": 0.5,
    }
    with monitor(tmp_path) as watched:
        watched.write(2, values)
        watched.advance(60)
    shown = capsys.readouterr().err.split("\r")[-1]
    for part in ("100/100", "loss=7.123", "ibot=5.500", "lr=1.2e-03", "img/s/device=250"):
        assert part in shown
    assert "mfu=42%, wait=3%, GiB=61.5" in shown
    assert "target_entropy" not in shown, "only in the file"
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row == {"step": 2, **values}


def test_the_bar_shows_images_per_second_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    with monitor(tmp_path) as watched:
        now += 20.0
        watched.advance(40)
        shown = capsys.readouterr().err.split("\r")[-1]
    assert "80/100 [00:20<00:10,  2.00 images/s" in shown, (
        "without the 40 images of an earlier start"
    )


def test_the_bar_of_a_training_counts_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def last_shown(*overrides: str) -> str:
        assert command(run, *overrides) == 0
        return capsys.readouterr().err.split("\r")[-1]

    run = make_run(tmp_path)
    every_two = ("checkpoint.every_steps=2", "checkpoint.keep=2")
    assert "32/32 [" in last_shown(*every_two)
    (run / "train" / "checkpoints" / "step-000000004.pt").unlink()
    assert "32/32 [" in last_shown(*every_two), "also for a training that continues"


@pytest.mark.parametrize("wanted", [True, False])
def test_tensorboard_gets_metrics_unless_it_is_off(tmp_path: Path, wanted: bool) -> None:
    with monitor(tmp_path, tensorboard=wanted) as watched:
        watched.write(2, {"loss": 1.0})
    assert len(list(tmp_path.glob("tensorboard/events*"))) == wanted


def test_a_log_that_cannot_be_finished_is_an_error_but_hides_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: MetricsLog) -> None:
        raise StorageError(None, "the disk is full")

    monkeypatch.setattr(MetricsLog, "close", fail)
    with pytest.raises(StorageError, match="the disk is full"), monitor(tmp_path):
        pass
    with pytest.raises(RuntimeError, match="a bug"), monitor(tmp_path):
        raise RuntimeError("a bug")


FAKE_WANDB = """
import json
from pathlib import Path

LOG = Path(__file__).with_name("calls.jsonl")

def note(*call):
    with LOG.open("a") as file:
        file.write(json.dumps(call) + "\\n")

class Run:
    def log(self, values, step):
        note("log", step, values)
    def finish(self):
        note("finish")

def init(**settings):
    note("init", settings)
    return Run()
"""


def test_weights_and_biases_gets_metrics_if_a_project_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"wandb_project' has value 'p', .* not installed"):
        monitor(tmp_path / "train", wandb_project="p")
    package = tmp_path / "packages" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(str(package.parent))
    with monitor(tmp_path / "train", wandb_project="p") as watched:
        watched.write(2, {"loss": 1.0})
        watched.flush()
    started, logged, finished = map(json.loads, (package / "calls.jsonl").read_text().splitlines())
    assert started[1]["project"] == "p"
    assert started[1]["resume"] == "allow"
    assert started[1]["config"] == {"seed": 3}
    assert (logged, finished) == (["log", 2, {"loss": 1.0}], ["finish"])
    again = monitor(tmp_path / "train", wandb_project="p")
    assert again is not None
    calls = [json.loads(line) for line in (package / "calls.jsonl").read_text().splitlines()]
    assert calls[-1][1]["id"] == started[1]["id"], "the same run is continued"
