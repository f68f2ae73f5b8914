import os
import time
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.runner import run_stage
from pipelines.verify import ABANDONED_S
from tests.support.counting_stage import stage


def test_files_left_unfinished_are_named_and_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path)
    made = stage(f"{run}/captions", 2)
    run_stage(made, [])
    assert main(["verify", run]) == 0
    shards = Path(made.folder.shard_url(0)).parent
    old, young = (shards / f".captions-00000{n}.parquet.{n}.part" for n in range(2))
    for path in (old, young):
        path.write_bytes(b"half of it")
    written = time.time() - ABANDONED_S - 60
    os.utime(old, (written, written))
    assert main(["verify", run]) == 1
    said = capsys.readouterr()
    assert f"shards/000/{old.name}: was left unfinished" in said.out
    assert young.name not in said.out, "its process may be at work"
    assert "repair=true" in said.err.splitlines()[-1]
    assert old.exists()
    assert main(["verify", run, "repair=true"]) == 1
    assert "deleted; verify again" in capsys.readouterr().err.splitlines()[-1]
    assert not old.exists()
    assert young.exists()
    assert main(["verify", run]) == 0


@pytest.mark.parametrize(
    ("file", "how", "also_lost"),
    [
        ("plan.json", "damaged", None),
        ("plan.json", "lost", None),
        ("run.yaml", "lost", None),
        ("plan.json", "lost", "run.yaml"),
        ("run.yaml", "damaged", "plan.json"),
    ],
)
def test_a_stage_that_cannot_be_read_does_not_hide_the_others(
    file: str, how: str, also_lost: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path)
    raw, curated = (stage(f"{run}/{name}", 2) for name in ("captions-raw", "captions"))
    for made in (raw, curated):
        run_stage(made, [])
    damaged = tmp_path / "captions-raw" / file
    if how == "lost":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:-9])
    if also_lost:
        (tmp_path / "captions-raw" / also_lost).unlink()
        file, how = "plan.json", "lost"
    Path(curated.folder.shard_url(1)).unlink()
    capsys.readouterr()
    assert main(["verify", run]) == 1
    said = capsys.readouterr().out
    assert f"captions-raw/{file}: " in said
    assert f"is {how}" in said
    assert "captions/shards/000/captions-000001.parquet: is missing" in said
    assert main(["status", run]) == 0
    said = capsys.readouterr().out
    assert f"captions-raw/{file}: " in said
    assert "captions " in said.splitlines()[1]
