import dataclasses
import hashlib
from pathlib import Path

import pytest

from pipelines.stage import UnfinishedError, finish, plan, run_stage, worker_sentence
from tests.pipelines.counting import stage
from transforms.core import storage
from transforms.core.config import ConfigError
from transforms.core.fingerprint import Fingerprint
from transforms.core.shards import read_index, read_success

NUM_SHARDS = 5


def content(url: str) -> dict[str, str]:
    """Checksums of what must not depend on how a run went."""
    return {
        name: hashlib.sha256(storage.read_bytes(storage.join(url, name))).hexdigest()
        for name in storage.list_files(url)
        if not name.startswith(("commits/", "run.yaml"))
    }


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
    assert "nothing to do" in capsys.readouterr().err
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
            "transforms.core.storage.StorageError: cannot write a/b: the disk is full; go on "
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
