"""A limit for each concept: exactly its first captions in the random order, equal numbers."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.curate import run
from tests.support.captions import caption
from tests.support.curation import PER_SHARD, config
from transforms.core.commit import ShardBuild
from transforms.core.counters import Tally
from transforms.core.errors import ConfigError, UnfinishedError
from transforms.core.index import write_index
from transforms.core.stages import stage_folder

LIMIT = {"captions_per_concept": 10, "near_duplicate_threshold": None}


def write_raw(url: str, numbers: dict[str, int]) -> None:
    """Complete a captions stage with so many captions of each concept, in turn."""
    named = [
        (concept, f"{concept} number {n}")
        for n in range(max(numbers.values()))
        for concept, number in numbers.items()
        if n < number
    ]
    rows = [caption(n, text, concept=c, source="animals") for n, (c, text) in enumerate(named)]
    folder = stage_folder(url, "captions-raw")
    records = []
    for shard in range(len(rows) // PER_SHARD):
        part = rows[shard * PER_SHARD : (shard + 1) * PER_SHARD]
        with ShardBuild(folder, shard) as build:
            build.write(iter(part))
            ids = [str(c.ordinal) for c in part]
            records.append(build.commit(ids, "raw", Tally()))
    write_index(folder, records, {"stage": "captions", "fingerprint": "raw"})


def curated(url: str) -> list[tuple[str, str]]:
    paths = sorted((Path(url) / "captions/shards").rglob("*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return [(row["concept"], row["text"]) for row in rows]


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.curate.CAPTIONS_PER_TASK", 25)


@pytest.mark.usefixtures("small_tasks")
def test_concepts_have_equally_many_captions_the_first_of_the_order(tmp_path: Path) -> None:
    numbers = {"cat": 30, "dog": 10, "eel": 20, "fox": 20}
    plain, limited = str(tmp_path / "plain"), str(tmp_path / "limited")
    for url in (plain, limited):
        write_raw(url, numbers)
    concepts = listed(tmp_path)
    run(config(plain, 80, concepts=concepts, curation={**LIMIT, "captions_per_concept": 99}), [])
    run(config(limited, 40, concepts=concepts, curation=LIMIT), [])
    found = curated(limited)
    assert Counter(concept for concept, _ in found) == dict.fromkeys(numbers, 10)
    expected, seen = [], Counter[str]()
    for concept, text in curated(plain):
        seen[concept] += 1
        if seen[concept] <= 10:
            expected.append((concept, text))
    assert found == expected


@pytest.mark.usefixtures("small_tasks")
def test_too_few_captions_of_a_concept_are_named(tmp_path: Path) -> None:
    url, concepts = str(tmp_path / "run"), listed(tmp_path)
    write_raw(url, {"cat": 30, "dog": 5, "eel": 25})
    sentence = r"only 25 of 60 .* at most 10 of each concept \('dog' has 5\).*oversampling=2\.1 "
    with pytest.raises(UnfinishedError, match=sentence):
        run(config(url, 40, concepts=concepts, curation=LIMIT), [])
    with pytest.raises(ConfigError, match=r"4 concepts have at most 40 captions, .* at least 15"):
        run(config(url, 60, concepts=concepts, curation=LIMIT), [])


def listed(folder: Path) -> str:
    path = folder / "animals.txt"
    path.write_text("cat\ndog\neel\nfox\n")
    return str(path)
