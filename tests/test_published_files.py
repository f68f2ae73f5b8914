"""What we publish, in other people's libraries: as the documents say, and without our code."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.captions import make_captions
from tests.support.image_sets import image_set
from tests.support.paths import PIPELINE_DATA, ROOT
from tests.support.training_runs import command, make_run
from trainer import export
from transforms.core.commit import ShardBuild
from transforms.core.counters import Tally
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES

WITHOUT_OUR_CODE = """
import sys
sys.modules.update(dict.fromkeys(["pipelines", "trainer", "transforms"]))
"""
"""Importing one of our packages is an error after this."""


OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def example(document: Path, library: str) -> str:
    """Return the Python example of a library in a document."""
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [text for text in blocks if re.search(rf"^(import|from) {library}\b", text, re.M)]
    return str(block)


def run_alone(code: str, folder: Path) -> str:
    """Run a program in a folder, without our packages; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_OUR_CODE + code],
        cwd=folder,
        env={**os.environ, **OFFLINE, "HF_DATASETS_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_diffusers_paints_with_tiny_sd_as_its_card_says(tmp_path: Path) -> None:
    shutil.copytree(PIPELINE_DATA / "tiny_sd", tmp_path / "pipelines/data/tiny_sd")
    run_alone(example(PIPELINE_DATA / "tiny_sd" / "README.md", "diffusers"), tmp_path)
    for name in ("cat.png", "recommended.png"):
        picture = Image.open(tmp_path / name)
        assert picture.size == (64, 64)
        assert np.asarray(picture).std() > 20, "it shows something"


def publish(run: Path, stage: str, records: Mapping[str, Any]) -> None:
    """Commit two shards of records, by their ids; leave only the shards, in a run's folder."""
    folder, ids = StageFolder(str(run.parent / "whole" / stage), STAGES[stage]), list(records)
    for shard, part in enumerate((ids[:3], ids[3:])):
        with ShardBuild(folder, shard) as build:
            build.write([records[record_id] for record_id in part])
            build.commit(part, "fingerprint", Tally())
    shutil.copytree(f"{folder.url}/shards", run / stage / "shards")
    shutil.rmtree(folder.url)


def test_webdataset_and_datasets_read_image_shards(tmp_path: Path) -> None:
    sets = [image_set(number) for number in range(5)]
    publish(tmp_path / "RUN", "images", {one.caption.caption_id: one for one in sets})
    examples = [example(ROOT / "docs" / "operate.md", name) for name in ("webdataset", "datasets")]
    lines = run_alone("\n".join(examples), tmp_path).splitlines()
    assert lines == 2 * [f"{one.caption.text} (8, 8) cat" for one in sets]


LOAD_CAPTIONS = """
import datasets

shards = "RUN/captions/shards/*/*.parquet"
read = datasets.load_dataset("parquet", data_files=shards, split="train")
assert read.column_names == list(captions.columns), read.column_names
for row in read:
    print(row["caption_id"], row["ordinal"], row["text"])
for index, row in captions.iterrows():
    print(row["caption_id"], row["ordinal"], row["text"])
"""


def test_pandas_and_datasets_read_caption_shards(tmp_path: Path) -> None:
    captions = make_captions(5)
    publish(tmp_path / "RUN", "captions", {str(one.ordinal): one for one in captions})
    code = example(ROOT / "docs" / "operate.md", "pandas") + LOAD_CAPTIONS
    rows = [f"{one.caption_id} {one.ordinal} {one.text}" for one in captions]
    shown = run_alone(code, tmp_path).splitlines()
    assert shown[-len(2 * rows) :] == 2 * rows
    assert shown[0].split() == ["caption_id", "text", "concept"], "the example prints a table"


def test_timm_loads_an_exported_encoder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert command(run) == 0
    assert export.main([str(run), str(tmp_path / "ENCODER")]) == 0
    shutil.rmtree(run)
    printed = run_alone(example(ROOT / "docs" / "operate.md", "timm"), tmp_path)
    assert printed.startswith("12 Compose(")
    assert "Resize(size=16" in printed
