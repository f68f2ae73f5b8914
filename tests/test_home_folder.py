"""`~` at the beginning of a place is the home folder, in every command."""

import importlib
import re
from pathlib import Path

import pytest

from pipelines.__main__ import jobs, main
from tests.support.curation import distinct, write_raw
from trainer.config import TrainConfig
from trainer.evaluate.datasets import load_dataset
from trainer.evaluate.protocols import config_class
from transforms.core.config import Config
from transforms.core.config_keys import leaves
from transforms.core.errors import ConfigError

CONFIGS: dict[str, type[Config]] = {
    **{
        name: importlib.import_module(f"pipelines.{job.module}").CONFIG
        for name, job in jobs().items()
    },
    "train": TrainConfig,
    "evaluate": config_class(),
}
OTHERS = {
    *("model", "engine.api_key_file", "engine.model_cache", "engine.compile_cache"),
    *("objective.text.tokenizer", "monitor.knn_dataset", "stage"),
}
"""Keys that are expanded where they are used (workers have their own home), or name no path."""


@pytest.mark.parametrize("name", CONFIGS)
def test_every_folder_and_file_in_a_config_is_a_place(name: str) -> None:
    known = dict(leaves(CONFIGS[name]))
    places = {key for key, info in known.items() if "_from_home" in repr(info)}
    assert "run" in places
    described = re.compile(r"\b(folder|file|path|list of relations|url)\b", re.IGNORECASE)
    texts = {key for key, info in known.items() if info.annotation in (str, str | None)}
    named = {key for key in texts if described.search(known[key].description or "")}
    assert named - places <= OTHERS


def test_a_run_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    write_raw(str(home / "run"), distinct(60))
    Path("curate.yaml").write_text(
        "run: ~/run\nnum_captions: 60\ncaptions_per_shard: 20\nconcepts: ~/concepts.txt\n"
        "model: none\ncaptions: {oversampling: 1}\n"
    )
    (home / "concepts.txt").write_text("cat\ndog\n")
    assert main(["curate", "curate.yaml"]) == 0
    assert (home / "run" / "captions" / "_SUCCESS").is_file()
    for job in ("status", "verify", "report"):
        assert main([job, "~/run"]) == 0, job
    assert [path.name for path in elsewhere.iterdir()] == ["curate.yaml"]
    with pytest.raises(ConfigError, match=f"{home}/pictures"):
        load_dataset("folder:~/pictures")
