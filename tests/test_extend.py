"""The examples of docs/extend.md, put into a copy of the packages and run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
TABLE = {
    "a batch stage": ("transforms/images/contrast.py", "pipelines/contrast.py"),
    "a text engine": ("transforms/engines/text/sentences.py",),
    "an image engine": ("transforms/engines/image/stripes.py",),
    "an objective": ("trainer/objectives/vicreg.py",),
}
"""What is added -> its new files; each needs one registry besides."""


class Block(NamedTuple):
    """A block of code of the page and the file that the line before it names."""

    file: str
    language: str
    code: str


def blocks() -> Iterator[Block]:
    file = ""
    for name, language, code in re.findall(
        r"^`([\w/.]+\.(?:py|yaml))`:$|^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
    ):
        if name:
            file = name
        else:
            yield Block(file, language, code)


def changed(text: str, diff: str) -> str:
    """Return a file's text with the lines of a diff without line numbers replaced."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(old) == 1, (
        f"the page changes {old!r}, which is in the file {text.count(old)}x"
    )
    return text.replace(old, new)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with everything that the page adds."""
    copy = tmp_path_factory.mktemp("extended")
    for package in ("transforms", "pipelines", "trainer"):
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for block in blocks():
        path = copy / block.file
        if block.language in ("python", "yaml"):
            assert not path.exists(), f"{block.file} exists already"
            path.write_text(block.code, encoding="utf-8")
        elif block.language == "diff":
            path.write_text(changed(path.read_text(encoding="utf-8"), block.code), encoding="utf-8")
    return copy


def command(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_table_counts_the_files_that_the_examples_touch() -> None:
    files = {block.file for block in blocks() if block.language in ("python", "diff")}
    registries = {block.file for block in blocks() if block.language == "diff"}
    assert len(registries) == len(TABLE)
    assert files == registries | {file for new in TABLE.values() for file in new}
    for what, new in TABLE.items():
        assert re.search(rf"^\| {what} \|.*\| {len(new) + 1} \|$", PAGE, re.MULTILINE)


@pytest.mark.slow
def test_the_examples_run(extended: Path) -> None:
    for block in blocks():
        if block.language == "sh":
            for line in block.code.replace("\\\n", "").splitlines():
                ended = command(line, extended)
                assert ended.returncode == 0, f"{line}\n{ended.stdout}\n{ended.stderr}"
    run = extended / "runs" / "extended"
    captions = [
        text
        for shard in sorted((run / "captions" / "shards").rglob("*.parquet"))
        for text in pq.read_table(shard)["text"].to_pylist()
    ]
    assert len(captions) == 64
    assert all(re.match(r"A \w+ and \w+ .* behind a \w+ fence", text) for text in captions)
    kept = pq.read_table(run / "images-contrast" / "index.parquet")
    assert 0 < sum(kept["num_samples"].to_pylist()) < len(captions)
    assert sum(kept["num_samples"].to_pylist() + kept["num_failures"].to_pylist()) == len(captions)
    log = (run / "train" / "metrics.jsonl").read_text(encoding="utf-8")
    assert '"invariance"' in log


@pytest.mark.slow
def test_the_examples_keep_the_style_of_the_house(extended: Path) -> None:
    new = [str(extended / file) for files in TABLE.values() for file in files]
    lint = ["ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), *new]
    assert subprocess.run([sys.executable, "-m", *lint], check=False).returncode == 0
    form = ["ruff", "format", "--check", "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    assert subprocess.run([sys.executable, "-m", *form, *new], check=False).returncode == 0
