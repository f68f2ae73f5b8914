"""The command: from a checkpoint to the score sheet."""

import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch

from tests.support import public_sets
from tests.support.checkpoints import note_readings
from tests.support.evaluation import read_scores, save_checkpoint, save_job, save_pictures
from tests.support.paths import TRAINER_CONFIGS
from trainer.checkpoints.files import checkpoints_folder, list_checkpoints
from trainer.evaluate.__main__ import main
from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.datasets import PAPER_SOURCES, expand
from trainer.evaluate.models import load_model
from trainer.evaluate.protocols import config_class
from trainer.evaluate.scoring import subjects_of
from transforms.core import storage
from transforms.core.config import load_config


@pytest.fixture
def job(tmp_path: Path) -> tuple[Path, Path]:
    """Return a run with a checkpoint, and the config of an evaluation on coloured squares."""
    pictures = save_pictures(tmp_path / "colours", {"train": 10, "test": 8})
    return save_job(
        tmp_path,
        [f"folder:{pictures}"],
        knn={"num_neighbours": 5},
        logistic={"num_strengths": 3, "weakest": 1e-2, "strongest": 1e2},
    )


def rows(run: Path) -> dict[tuple[str, str], dict[str, object]]:
    return {(row["protocol"], row["encoder"]): row for row in read_scores(run)}


def test_all_tasks_from_checkpoint_to_sheet(
    job: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = job
    assert main(["all", str(path)]) == 0
    everything = rows(run)
    found = {key: row for key, row in everything.items() if key[0] != "fewshot"}
    assert len(everything) == len(found) + 3
    assert found.keys() == {
        (protocol, encoder)
        for protocol in ("knn", "logistic")
        for encoder in ("trained", "untrained", "pixels")
    }
    for (_, encoder), row in found.items():
        assert (row["num_train"], row["num_test"], row["num_classes"]) == (30, 24, 3)
        assert row["chance"] == pytest.approx(100 / 3)
        values = row["values"]
        assert isinstance(values, list)
        assert len(values) == (2 if encoder == "untrained" else 1)
        assert row["value"] == pytest.approx(sum(values) / len(values))
        assert (row["spread"] is None) == (encoder != "untrained")
    assert found["knn", "pixels"]["value"] == 100, "plain colours are easy to tell apart"
    output = capsys.readouterr().out
    assert "colours" in output
    assert str(run / "scores" / "scores.md") in output
    cells = [line.split() for line in (run / "scores" / "scores.md").read_text().splitlines()]
    assert ["|", "colours", "|", "knn", "|"] in [line[:5] for line in cells]


def test_done_is_not_done_again(
    job: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = job
    assert main(["all", str(path)]) == 0
    first = capsys.readouterr().out
    written = {p.name: p.read_bytes() for p in (run / "scores").iterdir()}

    def fail(*_: object) -> None:
        raise AssertionError("nothing is left to score")

    monkeypatch.setattr("trainer.evaluate.scoring.subjects_of", fail)
    assert main(["all", str(path)]) == 0
    again = capsys.readouterr().out
    assert "Scored already:" in again
    assert again.splitlines()[:-1] == first.splitlines()[:-1]
    assert {p.name: p.read_bytes() for p in (run / "scores").iterdir()} == written


def test_what_changed_is_scored_again(job: tuple[Path, Path]) -> None:
    run, path = job
    assert main(["all", str(path)]) == 0
    knn, logistic = ((run / "scores" / f"{name}-colours.json") for name in ("knn", "logistic"))
    before = [file.stat().st_mtime_ns for file in (knn, logistic)]
    assert main(["all", str(path), "knn.num_neighbours=3"]) == 0
    assert knn.stat().st_mtime_ns > before[0]
    assert logistic.stat().st_mtime_ns == before[1], "its settings are the same"

    older = knn.read_text()
    save_checkpoint(run, seed=1)
    assert main(["knn", str(path), "knn.num_neighbours=3"]) == 0
    assert json.loads(knn.read_text())["checkpoint"] != json.loads(older)["checkpoint"]
    assert {protocol for protocol, _ in rows(run)} == {"knn"}, "old logistic scores are left out"


def test_data_sets_are_scored_one_after_another(job: tuple[Path, Path], tmp_path: Path) -> None:
    run, path = job
    assert main(["knn", str(path)]) == 0
    before = (run / "scores" / "knn-colours.json").stat().st_mtime_ns
    (tmp_path / "colours").rename(tmp_path / "paints")
    assert main(["knn", str(path), f"datasets=[folder:{tmp_path / 'paints'}]"]) == 0
    assert (run / "scores" / "knn-colours.json").stat().st_mtime_ns == before
    assert {row["dataset"] for row in read_scores(run)} == {"colours", "paints"}


def test_scores_are_deterministic(job: tuple[Path, Path], tmp_path: Path) -> None:
    run, path = job
    assert main(["all", str(path)]) == 0
    first = without_times(run)
    for row in first:
        value, interval = row["value"], row["interval"]
        assert isinstance(value, float) and isinstance(interval, list)
        assert interval[0] <= value <= interval[1]
    for file in (run / "scores").iterdir():
        file.unlink()
    assert main(["all", str(path), "batch_size=7"]) == 0
    assert without_times(run) == first, "from the features on disk"
    shutil.rmtree(run / "features")
    for file in (run / "scores").iterdir():
        file.unlink()
    assert main(["all", str(path), "batch_size=7"]) == 0
    again = without_times(run)
    assert [row["value"] for row in again] == [row["value"] for row in first]


def test_a_remote_checkpoint_is_fetched_and_checked_once(
    job: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = job
    assert main(["knn", str(path)]) == 0
    local = json.loads((run / "scores" / "knn-colours.json").read_text())
    there = f"memory://{uuid.uuid4().hex}"
    (file,) = list_checkpoints(checkpoints_folder(str(run / "train"))).values()
    storage.replace_bytes(Path(file).read_bytes(), f"{there}/{Path(file).name}")
    readings = note_readings(monkeypatch)
    (run / "scores" / "knn-colours.json").unlink()
    assert main(["knn", str(path), f"checkpoint={there}"]) == 0
    assert readings == ["download", "_check_sums"]
    remote = json.loads((run / "scores" / "knn-colours.json").read_text())
    for row in (*remote["rows"], *local["rows"]):
        del row["features_s"], row["protocol_s"]
    assert remote == local


def test_untrained_encoders_differ_and_are_the_same_another_time(tmp_path: Path) -> None:
    config = EvaluateConfig(run="unused", num_untrained=2)
    model = load_model(str(save_checkpoint(tmp_path)), "teacher")

    def weights() -> list[torch.Tensor]:
        found = [s.encoder for s in subjects_of(config, model) if s.kind == "untrained"]
        return [next(encoder.parameters()) for encoder in found if encoder is not None]

    (first, second), again = weights(), weights()
    assert not torch.equal(first, second)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])


def test_baselines_can_be_left_out(job: tuple[Path, Path]) -> None:
    run, path = job
    assert main(["knn", str(path), "num_untrained=0", "pixels=false"]) == 0
    assert rows(run).keys() == {("knn", "trained")}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("datasets=[pictures]", "unknown data set 'pictures'"),
        ("datasets=[fashion-mnist,fashion-mnist]", "'fashion-mnist' is listed twice"),
        ("knn.neighbours=3", "unknown key 'knn.neighbours'"),
        ("knn.temperature=0", "'knn.temperature' has value 0"),
        ("datasets=[]", "'datasets'"),
        ("batch_size=0", "'batch_size' has value 0: expected more than 0"),
        ("num_workers=-2", "'num_workers' has value -2"),
    ],
)
def test_wrong_settings(
    job: tuple[Path, Path], capsys: pytest.CaptureFixture[str], override: str, words: str
) -> None:
    _, path = job
    assert main(["knn", str(path), override]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody can write to")
def test_a_run_that_cannot_be_written_to_is_said_before_anything_is_scored(
    job: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = job
    monkeypatch.setattr("trainer.evaluate.scoring.subjects_of", None)
    assert main(["knn", str(path), f"checkpoint={run}", "run=/proc/absent"]) == 1
    assert "cannot write /proc/absent/scores/.writable: its folder" in capsys.readouterr().err


def test_a_missing_checkpoint_is_work_left_undone(
    job: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, path = job
    assert main(["knn", str(path), f"run={tmp_path / 'nothing'}"]) == 1
    assert "there is no checkpoint in" in capsys.readouterr().err
    (tmp_path / "model.safetensors").touch()
    assert main(["knn", str(path), f"checkpoint={tmp_path}"]) == 2
    assert f"{tmp_path} is an export: expected the checkpoint or run" in capsys.readouterr().err


def test_damaged_pictures_are_counted_and_named(
    job: tuple[Path, Path], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run, path = job
    for name in ("test/red/000.png", "train/blue/001.png"):
        (tmp_path / "colours" / name).write_bytes(b"broken")
    assert main(["knn", str(path)]) == 0
    assert "is left out of colours: test: " in caplog.text
    for row in rows(run).values():
        assert (row["num_train"], row["num_test"]) == (29, 23)
        assert isinstance(unreadable := row["unreadable"], list)
        assert len(unreadable) == 2
        assert "red/000.png" in str(unreadable)
    for file in (tmp_path / "colours" / "test").rglob("*.png"):
        file.write_bytes(b"broken")
    assert main(["knn", str(path)]) == 2


def without_times(run: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in read_scores(run)]


def test_help_describes_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    output = capsys.readouterr().out
    for key in ("run", "datasets", "knn.temperature", "logistic.num_strengths"):
        assert f"  {key}  (" in output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, trainer.evaluate.__main__ as m\n"
        "try: m.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'timm', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_papers_file_asks_for_every_set_of_the_paper() -> None:
    config = load_config(config_class(), str(TRAINER_CONFIGS / "paper-evaluate.yaml"))
    assert len(expand(config.datasets)) == len(PAPER_SOURCES) == 17


def test_the_demos_file_is_valid() -> None:
    path = TRAINER_CONFIGS / "demo-evaluate.yaml"
    config = load_config(config_class(), str(path))
    assert config.run == "runs/demo"
    assert config.num_untrained >= 3


def test_check_lists_what_is_there_and_how_to_get_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: tuple[Path, Path]
) -> None:
    public_sets.eurosat(tmp_path)
    assert main(["check", f"data={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (there,) = [line.split() for line in lines if line.startswith("eurosat")]
    assert there == ["eurosat", "torchvision:eurosat", "accuracy", *["18", "/", "6", "/", "6"]]
    (missing,) = [line for line in lines if line.startswith("flowers")]
    assert f"missing               {tmp_path}/flowers-102/jpg" in missing
    assert "get it from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/" in missing
    assert lines[-1].endswith(f"data sets are there (in {tmp_path})")

    assert main(["check", str(job[1])]) == 0
    assert "colours" in capsys.readouterr().out, "with the sets of the config"
    with pytest.raises(SystemExit):
        main(["all"])


def test_several_labels_per_picture_from_files_to_sheet(
    tmp_path: Path, job: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = job
    public_sets.voc2007(tmp_path)
    voc = ("datasets=[torchvision:voc2007]", f"data={tmp_path}", "num_untrained=0")
    assert main(["all", str(path), *voc]) == 0
    found = rows(run)
    assert found.keys() == {("logistic", "trained"), ("logistic", "pixels")}, "kNN needs one class"
    capsys.readouterr()
    assert main(["knn", str(path), *voc]) == 1
    said = "knn scores none of the data sets voc2007: it takes data sets for classification"
    assert said in capsys.readouterr().err
    for row in found.values():
        assert (row["metric"], row["num_classes"], row["num_test"]) == ("11-point mAP", 20, 2)
        assert isinstance(value := row["value"], float)
        assert 0 <= value <= 100


def test_absent_sets_are_a_line_of_the_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: tuple[Path, Path]
) -> None:
    run, path = job
    colours = f"folder:{tmp_path / 'colours'}"
    sets = f"datasets=[{colours},torchvision:food101,resisc45]"
    assert main(["knn", str(path), sets, f"data={tmp_path}"]) == 0
    output = capsys.readouterr().out
    assert f"food-101 is absent: {tmp_path}/food-101/images" in output
    assert "resisc45 is absent: " in output
    assert {row["dataset"] for row in rows(run).values()} == {"colours"}
    assert main(["knn", str(path), "datasets=[torchvision:food101]"]) == 1
    assert "none of the 1 data sets is there: DATA/food-101" in capsys.readouterr().err
