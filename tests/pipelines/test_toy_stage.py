"""A new stage needs a producer, a job module and one registry entry; nothing else is touched."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from pipelines.__main__ import jobs, main
from pipelines.runner import run_stage
from tests.support.captions import make_captions, write_captions
from tests.support.paths import ROOT
from transforms.core import storage
from transforms.core.config import Config
from transforms.core.counters import Count, Tally
from transforms.core.fingerprint import Fingerprint
from transforms.core.parquet_shards import ParquetShards
from transforms.core.records import Failure, schema_of
from transforms.core.shard_reader import CommittedShards
from transforms.core.shards import StageKind, read_commit
from transforms.core.stages import STAGES, Stage, stage_folder
from transforms.images.caption_reader import CaptionRows

PER_SHARD = 4


@dataclass(frozen=True)
class Length:
    """Number of words of a caption."""

    caption_id: str
    num_words: int
    words: tuple[str, ...]
    note: str | None


LENGTHS = StageKind(
    folder="lengths",
    title="Lengths",
    command="measure-lengths",
    help="count the words of every caption",
    file_prefix="lengths",
    unit="lengths",
    format=ParquetShards(Length, id_columns=("caption_id",)),
)


@dataclass(frozen=True)
class LengthProducer:
    """Counts words; the caption of chair 5 fails."""

    rows: CaptionRows

    def setup(self) -> None:
        """Nothing to load."""

    def record_ids(self, shard: int) -> list[str]:
        captions = self.rows.read(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        return [caption.caption_id for caption in captions]

    def produce(self, shard: int, tally: Tally) -> Iterator[Length | Failure]:
        for caption in self.rows.read(shard * PER_SHARD, (shard + 1) * PER_SHARD):
            if caption.ordinal == 5:
                tally.count(Count.ENGINE_ERROR)
                yield Failure(caption.caption_id, str(Count.ENGINE_ERROR), "no chair 5")
            else:
                words = tuple(caption.text.split())
                yield Length(caption.caption_id, len(words), words, None)


class LengthsConfig(Config):
    """Settings of the toy stage."""

    run: str
    """Folder or URL of the run."""


def run(config: LengthsConfig, flags: list[str]) -> None:
    """Measure."""
    rows = CaptionRows.open(storage.join(config.run, "captions"))
    stage = Stage(
        folder=stage_folder(config.run, "lengths"),
        fingerprint=Fingerprint({"captions": rows.index_sha256}),
        config=config.model_dump(mode="json"),
        num_shards=-(-rows.num_captions // PER_SHARD),
        num_records=rows.num_captions,
        producer=LengthProducer(rows),
    )
    run_stage(stage, flags)


@pytest.fixture
def run_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run with captions, where the stage is registered and its job module is in place."""
    monkeypatch.setitem(STAGES, LENGTHS.folder, LENGTHS)
    job = ModuleType("pipelines.measure_lengths", "Count words.")
    job.CONFIG, job.run = LengthsConfig, run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, job.__name__, job)
    url = str(tmp_path / "run")
    write_captions(f"{url}/captions", [make_captions(6), make_captions(4, first=6)])
    (tmp_path / "job.yaml").write_text(f"run: {url}\n")
    assert main(["measure-lengths", str(tmp_path / "job.yaml")]) == 0
    return url


def test_the_job_makes_the_shards_from_the_record_class(run_url: str) -> None:
    folder = stage_folder(run_url, "lengths")
    shards = CommittedShards.open(folder)
    assert [shard.num_samples for shard in shards] == [4, 3, 2]
    assert shards[0].url.endswith("lengths/shards/000/lengths-000000.parquet")
    rows = LENGTHS.format.read(shards[1].url)  # type: ignore[attr-defined]
    assert {row.num_words for row in rows} == {8}
    assert rows[0].words[:2] == ("a", "cat")
    assert pq.read_schema(shards[0].url).equals(schema_of(Length))
    assert read_commit(folder, 1).counts == {"engine_error": 1}


def test_the_job_is_in_the_help(run_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs()["measure-lengths"].help == LENGTHS.help
    assert main(["--help"]) == 0
    assert f"measure-lengths {LENGTHS.help}" in capsys.readouterr().out
    assert main(["measure-lengths", "--help"]) == 0
    assert "Folder or URL of the run" in capsys.readouterr().out


def test_every_operation_knows_the_stage(
    run_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", run_url]) == 0
    assert "complete: 9 lengths" in capsys.readouterr().out
    assert main(["verify", run_url, "stages=[lengths]"]) == 0
    assert main(["report", run_url]) == 0
    assert "Lengths" in capsys.readouterr().out
    folder = stage_folder(run_url, "lengths")
    index = storage.read_bytes(folder.index_url)
    storage.delete(folder.index_url)
    assert main(["index", run_url, "stage=lengths"]) == 0
    assert storage.read_bytes(folder.index_url) == index


def test_damage_is_found_and_the_command_repairs_it(
    run_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stage_folder(run_url, "lengths")
    whole = storage.read_bytes(folder.shard_url(2))
    storage.replace_bytes(whole[:-9] + b"x" + whole[-8:], folder.shard_url(2))
    assert main(["verify", run_url, "stages=[lengths]", "repair=true"]) == 1
    error = capsys.readouterr().err
    assert "run measure-lengths again" in error
    assert not storage.exists(folder.shard_url(2))
    assert main(["measure-lengths", str(tmp_path / "job.yaml")]) == 0
    assert storage.read_bytes(folder.shard_url(2)) == whole
    assert main(["verify", run_url, "stages=[lengths]"]) == 0


def test_workers_need_no_registry(run_url: str) -> None:
    """Elsewhere the stage is not in `STAGES`: what it is travels with its folder."""
    code = (
        "import pickle, sys; from transforms.core.stages import STAGES;"
        "folder = pickle.loads(sys.stdin.buffer.read()); assert 'lengths' not in STAGES;"
        "print(folder.shard_path(1), folder.kind.format.read_ids(folder.shard_url(1)))"
    )
    folder = stage_folder(run_url, "lengths")
    output = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(folder),
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    ids = LENGTHS.format.read_ids(folder.shard_url(1))
    assert output == f"shards/000/lengths-000001.parquet {ids}\n"


def test_an_incomplete_stage_names_its_command(run_url: str) -> None:
    folder = stage_folder(run_url, "lengths")
    storage.delete(folder.index_url)
    with pytest.raises(OSError, match=r"the lengths stage is not complete .*measure-lengths"):
        CommittedShards.open(folder)
