"""What we publish, in other people's libraries: as the documents say, and without our code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

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
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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


def test_webdataset_reads_image_shards(tmp_path: Path) -> None:
    folder = StageFolder(str(tmp_path / "run" / "images"), STAGES["images"])
    sets = [image_set(number) for number in range(5)]
    for shard, part in enumerate((sets[:3], sets[3:])):
        with ShardBuild(folder, shard) as build:
            build.write(part)
            build.commit([one.caption.caption_id for one in part], "fingerprint", Tally())
    published = tmp_path / "RUN" / "images" / "shards"
    shutil.copytree(tmp_path / "run" / "images" / "shards", published)
    lines = run_alone(example(ROOT / "docs" / "operate.md", "webdataset"), tmp_path).splitlines()
    assert lines == [f"{one.caption.text} (8, 8) cat" for one in sets]


def test_timm_loads_an_exported_encoder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert command(run) == 0
    assert export.main([str(run), str(tmp_path / "ENCODER")]) == 0
    shutil.rmtree(run)
    printed = run_alone(example(ROOT / "docs" / "operate.md", "timm"), tmp_path)
    assert printed.startswith("12 Compose(")
    assert "Resize(size=16" in printed
