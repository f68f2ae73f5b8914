import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines import curate
from pipelines.__main__ import main
from pipelines.curate import report_url, run
from tests.support.curation import LONG, PER_SHARD, config, distinct, write_raw
from transforms.core import storage
from transforms.core.errors import ConfigError, MissingFileError, UnfinishedError
from transforms.core.fingerprint import FingerprintMismatchError
from transforms.core.index import read_index
from transforms.images.caption_reader import CaptionRows


def read_curated(url: str) -> list[str]:
    folder = storage.join(url, "captions")
    index = read_index(storage.join(folder, "index.parquet"))
    assert set(index.table["num_samples"].to_pylist()) == {PER_SHARD}
    rows = CaptionRows.open(folder)
    return [caption.text for caption in rows.read(0, rows.num_captions)]


def test_curation_ends_with_equal_shards_an_index_and_success(any_storage: str) -> None:
    url = any_storage
    write_raw(url, [*distinct(65), *distinct(15)])
    run(config(url), [])
    curated = read_curated(url)
    assert len(set(curated)) == len(curated) == 60
    assert set(curated) <= set(distinct(65))
    assert curated != sorted(curated, key=distinct(65).index)
    index = read_index(storage.join(url, "captions", "index.parquet"))
    assert index.metadata["num_raw"] == "80"
    assert index.metadata["num_exact_duplicates"] == "15"
    assert storage.exists(storage.join(url, "captions", "_SUCCESS"))
    assert not storage.exists(storage.join(url, "captions", "parts")), "scratch files are deleted"


def test_the_report_says_what_was_removed_and_what_is_left(tmp_path: Path) -> None:
    url = str(tmp_path)
    write_raw(url, [*distinct(77), "caption number 5", LONG, f"{LONG}!"])
    run(config(url), [])
    report = json.loads(storage.read_bytes(report_url(url)))
    assert report["num_raw"] == 80
    assert report["num_exact_duplicates"] == 1
    assert report["num_near_duplicates"] == 1
    assert report["num_left_over"] == 80 - 2 - 60
    assert report["exact_examples"] == [{"text": "caption number 5", "times": 2}]
    (near,) = report["near_examples"]
    assert {near["dropped"], near["resembled"]} == {LONG, f"{LONG}!"}
    assert near["similarity"] == 1
    templates = {row["name"]: row for row in report["balance"]["template"]}
    assert templates["c-background"]["captions"] == 60
    assert templates["c"]["planned"] == pytest.approx(0.44)


def test_near_duplicates_may_stay(tmp_path: Path) -> None:
    url = str(tmp_path)
    texts = [LONG + "!" * i for i in range(60)]
    write_raw(url, texts)
    with pytest.raises(UnfinishedError, match="only 1 of 60 captions"):
        run(config(url), [])
    run(config(url, curation={"near_duplicate_threshold": None}), [])
    assert sorted(read_curated(url)) == sorted(texts)


def test_run_again_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = str(tmp_path)
    write_raw(url, distinct(60))
    run(config(url), [])
    before = {name: Path(url, name).stat().st_mtime_ns for name in storage.list_files(url)}
    run(config(url), [])
    assert "nothing to do" in capsys.readouterr().err
    after = {name: Path(url, name).stat().st_mtime_ns for name in storage.list_files(url)}
    assert after == before


def test_too_few_captions_lose_nothing_and_more_of_them_help(tmp_path: Path) -> None:
    url = str(tmp_path)
    # Every sixth caption repeats the one before it, also among the newest.
    texts = [f"caption number {i - (i % 6 == 5)}" for i in range(60)]
    write_raw(url, texts)
    with pytest.raises(UnfinishedError, match=r"only 50 of 60 captions.*oversampling=1\.3 "):
        run(config(url), [])
    write_raw(url, [*texts, *distinct(90)[70:]])
    run(config(url, oversampling=1.3), [])
    assert len(set(read_curated(url))) == 60


def test_an_exhausted_source_is_said_with_the_most_that_can_be_had(tmp_path: Path) -> None:
    url = str(tmp_path)
    write_raw(url, distinct(20) * 5)
    said = (
        r"only 20 of 100 captions.*about 20 are the most that these settings give.*duplicates=keep"
    )
    with pytest.raises(UnfinishedError, match=said):
        run(config(url), [])
    assert not (tmp_path / "captions" / "run.yaml").exists(), "other settings are possible"
    run(config(url, num_captions=100, curation={"duplicates": "keep"}), [])
    assert Counter(read_curated(url)) == dict.fromkeys(distinct(20), 5)
    report = json.loads(storage.read_bytes(report_url(url)))
    assert (report["num_repeated"], report["num_exact_duplicates"]) == (80, 0)
    assert main(["verify", url, "stages=[captions]"]) == 0


def test_a_stopped_curation_goes_on(tmp_path: Path) -> None:
    url = str(tmp_path)
    write_raw(url, distinct(60))
    run(config(url), [])
    whole = read_curated(url)
    for name in ("_SUCCESS", "index.parquet", "commits/000/captions-000001.json"):
        Path(url, "captions", name).unlink()
    Path(url, "captions", "shards/000/captions-000001.parquet").unlink()
    run(config(url), [])
    assert read_curated(url) == whole


def test_a_curation_that_another_one_overtakes_is_done_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path)
    write_raw(url, distinct(60))
    cut = curate._reshard

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(curate, "_reshard", cut)
        run(config(url), [])
        assert not (tmp_path / "captions/parts").exists()
        return cut(*arguments)

    monkeypatch.setattr(curate, "_reshard", overtaken)
    run(config(url), [])
    assert sorted(read_curated(url)) == sorted(distinct(60))
    assert capsys.readouterr().err.endswith("60 captions, nothing to do\n")
    assert not (tmp_path / "captions/parts").exists()


def test_incomplete_captions_are_not_curated(tmp_path: Path) -> None:
    url = str(tmp_path)
    with pytest.raises(MissingFileError, match="run `python -m pipelines captions` until"):
        run(config(url), [])
    write_raw(url, distinct(60))
    with pytest.raises(UnfinishedError, match="has 3 shards, but the config asks for 5"):
        run(config(url, oversampling=1.5), [])
    assert not (tmp_path / "captions").exists()


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"num_captions": 40}, {"curation": {"shingle_words": 3}}]
)
def test_other_settings_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    url = str(tmp_path)
    write_raw(url, distinct(60))
    run(config(url), [])
    before = read_curated(url)
    with pytest.raises(FingerprintMismatchError, match=r"seed|num_captions|shingle_words"):
        run(config(url, **changed), [])
    assert read_curated(url) == before


def test_other_captions_are_refused(tmp_path: Path) -> None:
    url = str(tmp_path)
    write_raw(url, distinct(60))
    run(config(url), [])
    write_raw(url, distinct(80))
    with pytest.raises(ConfigError, match="captions_raw_index_sha256"):
        run(config(url), [])
