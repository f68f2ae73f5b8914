"""Wrong settings and wrong input on the command line: one clear sentence and the right code."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.__main__ import main
from tests.support.captions import make_captions
from tests.support.fault_matrix import NUM_SHARDS, Matrix
from tests.support.fault_process import Blocks
from tests.support.paths import ROOT
from transforms.core.fingerprint import Fingerprint, claim
from transforms.core.seeding import caption_id
from transforms.engines.image.base import Painted

CONFIG = "pipelines/configs/demo.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


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
    claim(f"{tmp_path}/run/captions-raw/run.yaml", Fingerprint({"seed": 1}), {})
    assert main(["captions", CONFIG, run]) == 2
    said = sentence(capsys)
    assert "seed: 1 there, 0 here" in said
    assert "choose another `run`" in said


def test_nothing_to_curate_or_paint_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", CONFIG, f"run={tmp_path}/run"]) == 1
    assert "captions-raw" in sentence(capsys)
    assert main(["images", "pipelines/configs/demo-images.yaml", f"run={tmp_path}/run"]) == 1
    assert "run `python -m pipelines curate` until" in sentence(capsys)


def test_stale_fingerprint(matrix: Matrix, capsys: pytest.CaptureFixture[str]) -> None:
    assert matrix.again() == 0
    assert matrix.again("seed=1") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "seed: 0 there, 1 here" in said
    assert "choose another `run`" in said
    matrix.ends_as_undisturbed()


def test_caption_that_makes_the_engine_raise(
    matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = make_captions(8)[7].text
    paint = Blocks.paint

    def raises(engine: Blocks, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        if text in texts:
            raise RuntimeError("no such chair")
        return paint(engine, texts, seeds)

    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "paint", raises)
        assert matrix.again() == 0
    assert matrix.again() == 0, "dead letters do not start another run"
    assert matrix.verify() == 0
    letters = pq.read_table(f"{matrix.run}/images/failures/000/images-000003.parquet").to_pylist()
    assert [letter["record_id"] for letter in letters] == [caption_id(text)]
    assert "no such chair" in letters[0]["detail"]
    assert [a == b for a, b in zip(matrix.checksums(), matrix.undisturbed, strict=True)] == [
        shard != 3 for shard in range(NUM_SHARDS)
    ]


def test_server_that_answers_503(
    unavailable_gcs: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["captions", CONFIG, "run=gs://bucket/run"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "503" in said
    assert "run the same command again" in said
    assert unavailable_gcs() > 3


def test_every_test_of_the_table_exists() -> None:
    table = (ROOT / "docs" / "operate.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(\w+)` \|$", table, re.MULTILINE)
    assert len(named) > 15
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(), f"{file} has no {test}"
