import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from pipelines import runner
from pipelines.runner import finish, is_complete, plan, progress, run_stage, worker_sentence
from tests.support.counting_stage import stage
from tests.support.run_yaml import write_run_yaml
from tests.support.stage_content import content
from trainer import train
from transforms.core import storage
from transforms.core.errors import ConfigError, UnfinishedError
from transforms.core.fingerprint import PACKAGES, Fingerprint
from transforms.core.index import read_index, read_success, write_index
from transforms.core.progress import LogHandler
from transforms.core.shards import read_commit
from transforms.core.stages import Stage, read_output, write_plan
from transforms.engines.image import registry as image_registry
from transforms.engines.text import registry as text_registry

NUM_SHARDS = 5


def test_a_stage_ends_with_every_shard_an_index_and_success(any_storage: str) -> None:
    made = stage(any_storage, NUM_SHARDS)
    run_stage(made, [])
    index = read_index(made.folder.index_url)
    assert index.table["num_samples"].to_pylist() == [5] * NUM_SHARDS
    assert index.table["num_failures"].to_pylist() == [1] * NUM_SHARDS
    for row in index.table.to_pylist():
        data = storage.read_bytes(storage.join(index.folder, row["path"]))
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert len(data) == row["num_bytes"]


def test_run_again_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, setups = str(tmp_path / "run"), tmp_path / "setups"
    run_stage(stage(url, NUM_SHARDS, setups=str(setups)), [])
    before = content(url)
    run_stage(stage(url, NUM_SHARDS, setups=str(setups)), [])
    assert content(url) == before
    # One of the six records of each shard is a dead letter.
    assert f"is complete: {NUM_SHARDS * 5} captions, nothing to do" in capsys.readouterr().err
    assert len(setups.read_text().split()) == 1, "the model must be loaded once per process"


def test_a_run_can_grow_but_not_shrink(tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    run_stage(stage(url, 2), [])
    run_stage(stage(url, 4), [])
    success = read_success(stage(url, 4).folder)
    assert success is not None
    assert success["num_shards"] == 4
    with pytest.raises(ConfigError, match="holds shard 3, but the config plans only 3"):
        plan(stage(url, 3))


def test_other_library_versions_are_named_or_refused_while_shards_are_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def larger(num_shards: int, strict: bool) -> Stage:
        planned = stage(url, num_shards)
        return dataclasses.replace(planned, libraries=("pyarrow",), strict_versions=strict)

    url = str(tmp_path / "run")
    run_stage(larger(2, strict=True), [])
    run_yaml = tmp_path / "run" / "run.yaml"
    recorded = yaml.safe_load(run_yaml.read_text())
    recorded["versions"] |= {"pyarrow": "1.2.3", "torch": "1.2.3"}
    write_run_yaml(recorded, str(run_yaml))
    before = content(url)
    run_stage(larger(2, strict=True), [])
    with pytest.raises(ConfigError, match=r"\(pyarrow 1\.2\.3 there, \S+ here\), and strict"):
        run_stage(larger(4, strict=True), [])
    assert content(url) == before
    assert "library versions" not in caplog.text
    run_stage(larger(4, strict=False), [])
    assert "library versions (pyarrow 1.2.3 there, " in caplog.text
    assert plan(larger(4, strict=True)) == []
    assert yaml.safe_load(run_yaml.read_text())["versions"]["pyarrow"] == "1.2.3"


def test_processes_of_a_runner_end_with_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(runner, "end_children_with_this_process", lambda: done.append("watch"))

    class Pipeline:
        def run(self) -> Mock:
            done.append("run")
            return Mock()

    runner.run_pipeline(Pipeline(), "")
    assert done == ["watch", "run"], "before the runner starts any"


def test_a_pipeline_that_never_ends_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pipeline = runner.new_pipeline([])
    assert list(tmp_path.iterdir()) == []
    runner.run_pipeline(pipeline, "")
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_cannot_be_made_leaves_the_others(tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    with pytest.raises(UnfinishedError, match="this shard cannot be made") as caught:
        run_stage(stage(url, NUM_SHARDS, raise_in=3), [])
    assert "run the same command again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert 3 in plan(stage(url, NUM_SHARDS))
    run_stage(stage(url, NUM_SHARDS), [])
    assert plan(stage(url, NUM_SHARDS)) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "Traceback (most recent call last):\n  File 'x.py', line 3\n"
            "transforms.core.StorageError: cannot write a/b: the disk is full; go on "
            "[while running 'Produce']\n",
            "cannot write a/b: the disk is full; go on",
        ),
        ("this shard cannot be made [while running 'x']", "this shard cannot be made"),
        ("cannot write a/b.c: full", "cannot write a/b.c: full"),
        ("", "RuntimeError"),
    ],
)
def test_worker_sentence_is_what_the_worker_raised(text: str, sentence: str) -> None:
    assert worker_sentence(RuntimeError(text)) == sentence


def test_shards_of_other_settings_leave_plan_and_index_as_they_are(tmp_path: Path) -> None:
    made = stage(str(tmp_path), 2)
    run_stage(made, [])
    before = content(str(tmp_path))
    other = dataclasses.replace(
        made, fingerprint=Fingerprint({"other": 1}), metadata={"generator_digest": "other"}
    )
    with pytest.raises(UnfinishedError, match="another fingerprint"):
        finish(other)
    assert content(str(tmp_path)) == before


def rewritten_index(made: Stage) -> None:
    """Let the index and `_SUCCESS` agree on something that the commit records do not say."""
    records = [read_commit(made.folder, shard) for shard in range(made.num_shards)]
    records[1] = dataclasses.replace(records[1], num_bytes=7)
    storage.delete(made.folder.success_url)
    write_index(made.folder, records, read_index(made.folder.index_url).metadata)


LOSSES: dict[str, Callable[[Stage], object]] = {
    "index": lambda made: storage.delete(made.folder.index_url),
    "damaged index": lambda made: storage.replace_bytes(b"PAR1", made.folder.index_url),
    "success": lambda made: storage.replace_bytes(b"[]", made.folder.success_url),
    "wrong index": rewritten_index,
    "shard": lambda made: storage.delete(made.folder.shard_url(3)),
    "cut off shard": lambda made: storage.replace_bytes(b"", made.folder.shard_url(3)),
    "commit record": lambda made: storage.delete(made.folder.commit_url(3)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_complete_stage_that_lost_something_is_completed_again(
    any_storage: str, loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = stage(any_storage, NUM_SHARDS)
    run_stage(made, [])
    before, commits = content(any_storage), storage.list_times(f"{any_storage}/commits")
    LOSSES[loss](made)
    assert not is_complete(made)
    capsys.readouterr()
    run_stage(made, [])
    assert is_complete(made)
    assert content(any_storage) == before
    # Nothing that was whole is made again.
    again = {
        name
        for name, time in storage.list_times(f"{any_storage}/commits").items()
        if time != commits[name]
    }
    assert again == ({"000/captions-000003.json"} if "shard" in loss or "rec" in loss else set())
    said = capsys.readouterr().err
    assert ("1 committed shards are lost and made again" in said) == ("shard" in loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_folder_that_lost_its_settings_takes_no_others(tmp_path: Path, loss: str) -> None:
    made = stage(str(tmp_path / "run"), NUM_SHARDS)
    run_stage(made, [])
    LOSSES[loss](made)
    storage.delete(made.folder.run_yaml_url)
    before = storage.list_times(made.folder.url)
    with pytest.raises(ConfigError, match="made with other settings, and its run"):
        run_stage(dataclasses.replace(made, fingerprint=Fingerprint({"seed": 3})), [])
    assert storage.list_times(made.folder.url) == before
    run_stage(made, [])
    assert is_complete(made)


def test_a_shard_that_is_cut_off_while_the_index_is_lost(tmp_path: Path) -> None:
    made = stage(f"{tmp_path}/captions", NUM_SHARDS)
    run_stage(made, [])
    storage.replace_bytes(b"", made.folder.shard_url(3))
    storage.delete(made.folder.index_url)
    with pytest.raises(UnfinishedError, match=r"1 shards in .* have another size .*repair=true"):
        run_stage(made, [])
    assert not is_complete(made)


def test_preparation_is_for_shards_that_have_to_be_made(tmp_path: Path) -> None:
    made = stage(str(tmp_path), 2)
    prepared: list[int] = []

    def prepare() -> None:
        assert storage.exists(made.folder.run_yaml_url) == bool(prepared)
        prepared.append(len(storage.list_files(f"{tmp_path}/commits")))

    run_stage(made, [], prepare)
    run_stage(made, [], prepare)
    storage.delete(made.folder.index_url)
    run_stage(made, [], prepare)
    assert prepared == [0]
    storage.delete(made.folder.shard_url(1))
    run_stage(made, [], prepare)
    assert prepared == [0, 2]


@pytest.mark.parametrize("lost", ["shard", "commit", "both"])
def test_shards_that_may_differ_are_not_made_again_under_another_stage(
    tmp_path: Path, lost: str
) -> None:
    curated = stage(f"{tmp_path}/captions", 1).folder
    made = dataclasses.replace(stage(f"{tmp_path}/captions-raw", 3), feeds=curated)
    run_stage(made, [])
    if lost != "commit":
        storage.delete(made.folder.shard_url(1))
    if lost != "shard":
        storage.delete(made.folder.commit_url(1))
    before = content(str(tmp_path))
    storage.publish_bytes(b"fields: {}", curated.run_yaml_url)
    if lost == "commit":
        run_stage(made, [])  # The shard is adopted, so that its bytes are the same.
        assert is_complete(made)
        return
    with pytest.raises(UnfinishedError, match=r"either keep .*/captions, .* or run both with"):
        run_stage(made, [])
    assert content(str(tmp_path)).items() >= before.items()
    storage.delete(curated.run_yaml_url)
    run_stage(made, [])
    assert is_complete(made)


def test_a_larger_plan_that_was_given_up_is_forgotten(tmp_path: Path) -> None:
    made = stage(str(tmp_path), 2)
    run_stage(made, [])
    write_plan(stage(str(tmp_path), 4))
    run_stage(made, [])
    output = read_output(made.folder)
    assert output is not None and output.num_shards == 2


def test_rate_and_time_left_are_those_since_this_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, committed, looks = 1000.0, {0}, 0

    def look(_: object) -> set[int]:
        nonlocal looks
        looks += 1
        return committed

    def shown_at(moment: float, *shards: int) -> str:
        nonlocal now, committed
        committed = {0, *shards}
        now = moment  # Set last: before, no time has passed and nothing is drawn.
        enough = looks + 3  # The first may have begun earlier, and the last may not be over.
        while looks < enough:
            time.sleep(0.001)
        return capsys.readouterr().err

    monkeypatch.setattr("tqdm.std.time", lambda: now)
    monkeypatch.setattr("pipelines.runner.POLL_INTERVAL_S", 0.001)
    monkeypatch.setattr("pipelines.runner.shards.committed_shards", look)
    made = dataclasses.replace(stage(str(tmp_path / "made"), 5), why_so_many="20, and spare ones")
    with progress(made, 4):
        shown = shown_at(1580)
        assert shown.startswith("made: 30 captions (20, and spare ones) in 5 shards, 1 complete;")
        assert "6/30 [09:40<?" in shown
        assert "12/30 [10:00<30:00, 100.00s/" in shown_at(1600, 1), "6 in ten minutes, not in 20 s"
        assert "12/30 [10:30<31:" in shown_at(1630, 1), "it is drawn between shards"
        logger = logging.Logger("any")
        logger.addHandler(LogHandler())
        logger.warning("loading fox")
        assert "\rloading fox\n\rmade" in capsys.readouterr().err, "on a line of its own"


def test_libraries_of_stages_and_trainer_are_recorded() -> None:
    engines: list[Any] = [*text_registry.ENGINES, *image_registry.ENGINES]
    named = {library for engine in engines for library in engine.libraries} | {*train.LIBRARIES}
    assert {"diffusers", "timm", "torch", "vllm"} <= named <= {*PACKAGES}
