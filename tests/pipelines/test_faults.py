"""What goes wrong on real clusters, from the command line: one clear sentence, the right code."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.stage import UnfinishedError, plan, run_stage
from tests.pipelines.counting import stage
from transforms.core import storage

CONFIG = "pipelines/configs/demo.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent.parent)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sources:\n- {source: s, concepts: []}\n", "source 's' has no concepts"),
        ("sources: []\n", "is empty: expected at least one concept"),
        ("sources:\n- {source: s, concepts: [cat], colour: red}\n", "unknown key"),
        ("sources:\n- {source: s, concepts: [{name: cat, size: 3}]}\n", "unknown key"),
        ("sources:\n- {source: s, kind: animal, concepts: [cat]}\n", "'object', 'place' or"),
    ],
)
def test_wrong_concept_lists(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    concepts = tmp_path / "concepts.yaml"
    concepts.write_text(text)
    assert main(["captions", CONFIG, f"run={tmp_path}/run", f"concepts={concepts}"]) == 2
    said = sentence(capsys)
    assert expected in said
    assert str(concepts) in said
    assert not (tmp_path / "run").exists()


def test_missing_concept_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["captions", CONFIG, f"run={tmp_path}/run", "concepts=absent.yaml"]) == 2
    assert "absent.yaml" in sentence(capsys)


def test_folder_of_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = f"run={tmp_path}/run"
    storage.publish_bytes(
        b"fields: {seed: 1}\nfingerprint: x\n", f"{tmp_path}/run/captions-raw/run.yaml"
    )
    assert main(["captions", CONFIG, run]) == 2
    said = sentence(capsys)
    assert "seed: 1 there, 0 here" in said
    assert "choose another `run`" in said


def test_nothing_to_curate_or_paint_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", CONFIG, f"run={tmp_path}/run"]) == 1
    assert "captions-raw" in sentence(capsys)
    assert main(["images", "pipelines/configs/demo-images.yaml", f"run={tmp_path}/run"]) == 1
    assert "run the curate stage" in sentence(capsys)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)]) != 0:
        pytest.skip("this machine does not allow mounting a tmpfs")
    yield disk
    subprocess.check_call(["umount", str(disk)])


def test_full_disk_stops_the_stage_and_keeps_what_is_committed(small_disk: Path) -> None:
    url = str(small_disk / "run")
    with pytest.raises(UnfinishedError, match=r"the disk is full.*run the same command again"):
        run_stage(stage(url, 60), [])
    committed = set(range(60)) - set(plan(stage(url, 60)))
    assert committed
    subprocess.check_call(["mount", "-o", "remount,size=8m", str(small_disk)])
    run_stage(stage(url, 60), [])
    assert plan(stage(url, 60)) == []


def test_server_that_answers_503(
    unavailable_gcs: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["captions", CONFIG, "run=gs://bucket/run"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "503" in said
    assert "run the same command again" in said
    assert unavailable_gcs() > 3
