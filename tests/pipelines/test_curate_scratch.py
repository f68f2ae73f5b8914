"""Scratch files of a stopped curation that are damaged or missing are named and made again."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import curate
from tests.support.curation import LONG, config, distinct, write_raw
from tests.support.stage_content import content
from transforms.core import storage
from transforms.core.errors import UnfinishedError

KINDS = ("captions", "distinct", "bands", "pairs", "texts", "near")
STEPS = ("scatter", "distinct", "pair", "fetch", "verify")
TEXTS = [*distinct(77), "caption number 5", LONG, f"{LONG}!"]


class Stopped(Exception):
    """Ends a curation like a signal."""


@pytest.fixture(autouse=True)
def _several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate, "CAPTIONS_PER_TASK", 40)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    url = str(tmp_path_factory.mktemp("undisturbed"))
    write_raw(url, TEXTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curate, "CAPTIONS_PER_TASK", 40)
        curate.run(config(url), [])
    return content(f"{url}/captions")


def stopped(run: Path, before: str, texts: list[str] = TEXTS, **changes: Any) -> Path:
    """Curate a run up to the first file whose name contains a text; return its scratch folder."""
    write_raw(str(run), texts)

    def stopping(write: Callable[..., Any], place: int) -> Callable[..., Any]:
        def written(*arguments: Any) -> Any:
            if before in arguments[place]:
                raise Stopped
            return write(*arguments)

        return written

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace_bytes", "publish_bytes", "publish_file"):
            patch.setattr(storage, name, stopping(getattr(storage, name), 1))
        with pytest.raises((Stopped, UnfinishedError)):
            curate.run(config(str(run), **changes), [])
    (scratch,) = (run / "captions" / "parts").iterdir()
    return scratch


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    if how == "missing":
        path.unlink()
    elif how == "flipped":
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :])
    else:
        path.write_bytes(data[:middle] if how == "half" else b"")


@pytest.mark.parametrize(
    ("kind", "before", "how"),
    [
        ("captions", "done/distinct/000001", "empty"),
        ("bands", "done/pair/000001", "half"),
        ("pairs", "done/fetch/000001", "missing"),
        ("texts", "done/verify/000001", "flipped"),
        ("distinct", "/captions/shards/", "empty"),
        ("near", "/captions/shards/", "half"),
    ],
)
def test_a_damaged_file_is_named_and_made_again(
    tmp_path: Path,
    undisturbed: dict[str, str],
    kind: str,
    before: str,
    how: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    scratch = stopped(tmp_path, before)
    path = sorted((scratch / kind).glob("*.parquet"))[-1]
    damage(path, how)
    curate.run(config(str(tmp_path)), [])
    assert content(f"{tmp_path}/captions") == undisturbed
    assert f"damaged scratch files are made again: {kind}/{path.name}\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kind", "before"),
    [
        ("written", "done/number/000001"),
        ("times", "done/count/000001"),
        ("before", "done/number/000001"),
        ("numbered", "done/distinct/000001"),
        ("distinct", "/captions/shards/"),
    ],
)
def test_damaged_files_of_captions_that_are_kept(tmp_path: Path, kind: str, before: str) -> None:
    kept: dict[str, Any] = {"curation": {"duplicates": "keep"}}
    texts = distinct(20) * 4
    whole, run = tmp_path / "whole", tmp_path / "run"
    write_raw(str(whole), texts)
    curate.run(config(str(whole), **kept), [])
    scratch = stopped(run, before, texts, **kept)
    damage(sorted((scratch / kind).glob("*.parquet"))[-1], "flipped")
    curate.run(config(str(run), **kept), [])
    assert content(f"{run}/captions") == content(f"{whole}/captions")


def test_results_of_every_step(
    tmp_path: Path, undisturbed: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    scratch = stopped(tmp_path, "/captions/shards/")
    names = ["summary.json", *(f"done/{step}/000001.json" for step in STEPS)]
    for name, how in zip(names, itertools.cycle(["empty", "half", "flipped"]), strict=False):
        damage(scratch / name, how)
    curate.run(config(str(tmp_path)), [])
    assert content(f"{tmp_path}/captions") == undisturbed
    assert all(f"{name} is damaged" in caplog.text for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["empty", "half", "missing", "flipped"])
@pytest.mark.parametrize("before", ["done/distinct/000001", "done/fetch/000001", "summary.json"])
def test_files_of_all_kinds_at_once(
    tmp_path: Path, undisturbed: dict[str, str], before: str, how: str
) -> None:
    scratch = stopped(tmp_path, before)
    for kind in (*KINDS, *(f"done/{step}" for step in STEPS)):
        if files := sorted((scratch / kind).glob("*.*")):
            damage(files[0], how)
            if len(files) > 1:
                damage(files[-1], how)
    curate.run(config(str(tmp_path)), [])
    assert content(f"{tmp_path}/captions") == undisturbed


def test_storage_that_keeps_damaging_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raw(str(tmp_path), TEXTS)
    write = storage.replace_bytes
    monkeypatch.setattr(curate, "MAX_RESTARTS", 2)
    monkeypatch.setattr(
        storage, "replace_bytes", lambda data, url: write(b"" if "/near/" in url else data, url)
    )
    with pytest.raises(UnfinishedError, match="were damaged 2 times: check the storage"):
        curate.run(config(str(tmp_path)), [])
