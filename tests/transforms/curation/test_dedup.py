import dataclasses
import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.options import beam_options
from tests.support.captions import captions_of
from tests.support.sentences import altered, sentences, slow_jaccard
from transforms.core import storage
from transforms.core.errors import DamagedFileError
from transforms.core.parquet_shards import CAPTION_SHARDS
from transforms.core.records import Caption
from transforms.core.seeding import caption_id
from transforms.core.shard_reader import CommittedShard
from transforms.core.shards import StageFolder, read_commit
from transforms.core.stages import STAGES
from transforms.curation.columns import (
    in_groups,
    order_keys,
)
from transforms.curation.dedup import (
    Deduplication,
    DropDuplicates,
    Summary,
    read_summary,
    write_summary,
)
from transforms.curation.minhash import CurationConfig
from transforms.curation.reshard import (
    CountCaptions,
    KeptCaptions,
    ReshardCaptions,
    by_partition,
    read_counts,
)

SIZE = 10
FIELDS = {"concept": "thing", "source": "test", "template": "c-background", "background": "attic"}
EXACT = CurationConfig(near_duplicate_threshold=None)
KEEP = CurationConfig(duplicates="keep")


def write_shards(folder: Path, texts: Sequence[str], per_shard: int) -> list[CommittedShard]:
    """Write shards of captions like a captions stage, with consecutive ordinals."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, len(texts), per_shard)):
        path = str(folder / f"{number}.parquet")
        part = texts[start : start + per_shard]
        CAPTION_SHARDS.write(path, captions_of(part, start, **FIELDS))
        sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        shards.append(CommittedShard(path, sha256, len(part)))
    return shards


def deduplicate(
    shards: Sequence[CommittedShard],
    output: str,
    num_partitions: int = 3,
    seed: int = 0,
    config: CurationConfig = EXACT,
    per_task: int = 50,
    on_beam: bool = False,
) -> tuple[KeptCaptions, Summary]:
    groups = in_groups(shards, per_task)
    scratch = storage.join(output, "parts")
    tasks = Deduplication(scratch, len(groups), num_partitions, seed, config)
    if on_beam:
        with beam.Pipeline(options=beam_options([])) as pipeline:
            created = pipeline | beam.Create(list(enumerate(groups)))
            _ = created | DropDuplicates(tasks)
    else:
        for number, group in enumerate(groups):
            tasks.scatter(number, group)
        for step, num_tasks in tasks.steps:
            results = [(number, step(number, None)) for number in range(num_tasks)]
        write_summary(results, tasks.summary_url)
    summary = read_summary(tasks.summary_url)
    assert summary is not None
    return KeptCaptions(tasks, tuple(summary.num_kept)), summary


def cut(kept: KeptCaptions, output: str, num_shards: int) -> list[Caption]:
    """Write the missing shards; return the captions of all shards in order."""
    folder = StageFolder(output, STAGES["captions"])
    wanted = [n for n in range(num_shards) if not storage.exists(folder.commit_url(n))]
    with beam.Pipeline(options=beam_options([])) as pipeline:
        lists = pipeline | beam.Create(by_partition(wanted, kept, SIZE))
        _ = lists | ReshardCaptions(kept, folder, "print", SIZE)
    return [c for n in range(num_shards) for c in CAPTION_SHARDS.read(folder.shard_url(n))]


def all_kept(kept: KeptCaptions) -> list[str]:
    texts: list[str] = kept.rows(0, sum(kept.counts))["text"].to_pylist()
    return texts


def repeated(number: int, different: int) -> list[str]:
    """Return `number` captions of which `different` are distinct."""
    draw = random.Random(number)
    some = [f"caption number {i}" for i in range(different)]
    return some + [draw.choice(some) for _ in range(number - different)]


def test_every_caption_once_and_every_shard_of_the_same_size(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", repeated(160, 95), per_shard=23)
    kept, summary = deduplicate(shards, str(tmp_path / "out"), num_partitions=4)
    assert sum(kept.counts) == sum(summary.num_distinct) == 95
    curated = cut(kept, str(tmp_path / "out"), num_shards=9)
    assert len(curated) == 9 * SIZE, "95 different ones fill nine shards of ten"
    assert len({c.caption_id for c in curated}) == len(curated)
    folder = StageFolder(str(tmp_path / "out"), STAGES["captions"])
    assert {read_commit(folder, n).num_samples for n in range(9)} == {SIZE}
    assert not storage.exists(folder.shard_url(9)), "the rest is left out"
    assert all(c.background == "attic" and c.relation is None for c in curated)


@given(
    texts=st.lists(st.sampled_from(["a fox", "two foxes", "an owl", "a red wren"]), max_size=40),
    per_shard=st.integers(1, 9),
    per_task=st.integers(1, 20),
    num_partitions=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None)
def test_equal_captions_are_numbered_in_the_order_they_were_written(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    per_shard: int,
    per_task: int,
    num_partitions: int,
) -> None:
    folder = tmp_path_factory.mktemp("keep")
    texts = [*texts, "a wren"]
    shards = write_shards(folder / "in", texts, per_shard)
    kept, summary = deduplicate(
        shards, str(folder / "out"), num_partitions, config=KEEP, per_task=per_task
    )
    rows = kept.rows(0, sum(kept.counts))
    found = {row["ordinal"]: row for row in rows.to_pylist()}
    assert len(found) == len(rows) == len(texts), "each is there once"
    for ordinal, text in enumerate(texts):
        occurrence = texts[:ordinal].count(text)
        row = found[ordinal]
        assert (row["text"], row["occurrence"]) == (text, occurrence)
        assert row["caption_id"] == caption_id(text, occurrence)
    assert sum(summary.num_repeated) == len(texts) - len(set(texts))
    keys = order_keys(0, rows["caption_id"].combine_chunks())
    assert keys.tolist() == sorted(keys.tolist()), "equal captions are spread over the corpus"


def test_kept_duplicates_are_the_same_on_beam_and_leave_bytes_of_others_alone(
    tmp_path: Path,
) -> None:
    shards = write_shards(tmp_path / "in", repeated(80, 30), per_shard=17)
    ours, _ = deduplicate(shards, str(tmp_path / "a"), 2, config=KEEP, per_task=40)
    beams, _ = deduplicate(shards, str(tmp_path / "b"), 3, config=KEEP, on_beam=True)
    curated = cut(beams, str(tmp_path / "b"), num_shards=8)
    names = [field.name for field in dataclasses.fields(Caption)]
    assert [dataclasses.asdict(c) for c in curated] == ours.rows(0, 80).select(names).to_pylist()
    distinct = write_shards(tmp_path / "distinct", repeated(30, 30), per_shard=17)
    plain, same = (
        deduplicate(distinct, str(tmp_path / name), config=config)[0]
        for name, config in (("c", EXACT), ("d", KEEP))
    )
    assert plain.rows(0, 30)["caption_id"].equals(same.rows(0, 30)["caption_id"])


def test_of_equal_captions_the_first_written_is_kept(tmp_path: Path) -> None:
    texts = repeated(120, 50)
    shards = write_shards(tmp_path / "in", texts, per_shard=17)
    kept, summary = deduplicate(shards, str(tmp_path / "out"))
    assert sorted(c.ordinal for c in cut(kept, str(tmp_path / "out"), 5)) == list(range(50))
    most = max(texts, key=lambda text: (texts.count(text), [-ord(c) for c in text]))
    assert summary.exact_examples[0] == {"text": most, "times": texts.count(most)}
    assert all(example["times"] > 1 for example in summary.exact_examples)


def test_order_depends_on_seed_and_captions_alone(tmp_path: Path) -> None:
    draw = random.Random(0)
    written = sentences(40, draw)
    written += [altered(text, 1, draw) for text in written[:20]]
    near = CurationConfig()

    def texts(
        name: str, shards: list[CommittedShard], **settings: Any
    ) -> tuple[list[str], Summary]:
        kept, summary = deduplicate(shards, str(tmp_path / name), config=near, **settings)
        return all_kept(kept), summary

    shards = write_shards(tmp_path / "in", written, per_shard=7)
    first, removed = texts("a", shards, num_partitions=1, per_task=1000)
    assert len(first) < 60
    again, removed_again = texts("b", shards[::-1], num_partitions=5, per_task=1)
    assert again == first, "neither the input order nor the partitions count"
    assert removed_again.near_examples == removed.near_examples
    recut = write_shards(tmp_path / "in2", written[::-1], per_shard=60)
    assert texts("c", recut, num_partitions=2)[0] == first
    assert texts("d", shards, num_partitions=2, seed=1)[0] != first


def test_near_duplicates_are_those_that_brute_force_finds(tmp_path: Path) -> None:
    draw = random.Random(1)
    written = sentences(60, draw)
    for changed in (0, 1, 1, 2, 3):
        written += [altered(text, changed, draw) for text in written[:40]]
    # With one row per band, signatures agree in some band, so the threshold alone decides.
    config = CurationConfig(
        near_duplicate_threshold=0.6, num_permutations=256, num_bands=256, shingle_words=2
    )
    kept, summary = deduplicate(
        write_shards(tmp_path / "in", written, 31), str(tmp_path / "out"), config=config
    )
    texts = sorted(set(written))
    keys = order_keys(0, pa.array([caption_id(text) for text in texts]))
    ranked = [texts[i] for i in np.argsort(keys)]
    dropped = {
        later
        for earlier, later in itertools.combinations(ranked, 2)
        if slow_jaccard(earlier, later, 2) >= 0.6
    }
    assert 40 < len(dropped) < len(ranked)
    assert all_kept(kept) == [text for text in ranked if text not in dropped]
    assert sum(summary.num_near_duplicates) == len(dropped)
    for example in summary.near_examples:
        assert example["dropped"] in dropped
        alike = slow_jaccard(example["dropped"], example["resembled"], 2)
        assert alike == pytest.approx(example["similarity"]) and alike >= 0.6
        assert ranked.index(example["resembled"]) < ranked.index(example["dropped"])


def test_the_defaults_find_near_duplicates(tmp_path: Path) -> None:
    draw = random.Random(2)
    written = sentences(300, draw, length=25)
    # With one changed word, 22 of 26 shingles are common: a similarity of 0.85.
    written += [" ".join([*text.split()[:12], "other", *text.split()[13:]]) for text in written]
    shards = write_shards(tmp_path / "in", written, 100)
    kept, _ = deduplicate(shards, str(tmp_path / "out"), config=CurationConfig())
    assert 300 <= sum(kept.counts) <= 303, "at least 99 % of the pairs"


def test_a_stopped_deduplication_goes_on(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", repeated(90, 60), per_shard=20)
    near = CurationConfig()
    kept, summary = deduplicate(shards, str(tmp_path / "plain"), config=near)
    output = str(tmp_path / "out")
    on_beam, found = deduplicate(shards, output, config=near, on_beam=True)
    assert (all_kept(on_beam), found) == (all_kept(kept), summary)
    for name in ("summary.json", "done/verify/000001.json", "done/fetch/000000.json"):
        Path(output, "parts", name).unlink()
    before = Path(output, "parts", "captions", "000000-000000.parquet").stat().st_mtime_ns
    again, found = deduplicate(shards, output, config=near, on_beam=True)
    assert (all_kept(again), found) == (all_kept(kept), summary)
    after = Path(output, "parts", "captions", "000000-000000.parquet").stat().st_mtime_ns
    assert after == before, "what is done is not done again"


def test_committed_shards_are_left_alone(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    shards = write_shards(tmp_path / "in", repeated(40, 40), per_shard=7)
    kept, _ = deduplicate(shards, output)
    whole = cut(kept, output, num_shards=4)
    folder = StageFolder(output, STAGES["captions"])
    before = read_commit(folder, 1)
    for shard in (0, 2):
        Path(folder.commit_url(shard)).unlink()
        Path(folder.shard_url(shard)).unlink()
    assert cut(kept, output, num_shards=4) == whole
    assert read_commit(folder, 1) == before


def test_captions_are_counted_up_to_the_last_one_used(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", repeated(40, 40), per_shard=7)
    kept, _ = deduplicate(shards, str(tmp_path / "out"))
    url = str(tmp_path / "counts.json")
    with beam.Pipeline(options=beam_options([])) as pipeline:
        _ = pipeline | beam.Create(range(3)) | CountCaptions(kept, 30, url)
    assert read_counts(url) == [(("test", "thing", "c-background"), 30)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 40))
def test_groups_hold_every_shard_once(sizes: list[int], wanted: int) -> None:
    shards = [CommittedShard(str(i), "", size) for i, size in enumerate(sizes)]
    groups = in_groups(shards, wanted)
    assert list(itertools.chain(*groups)) == shards
    for group in groups:
        assert sum(shard.num_samples for shard in group[:-1]) < wanted


def test_a_changed_input_shard_is_refused(tmp_path: Path) -> None:
    shard, other = write_shards(tmp_path / "in", repeated(20, 20), per_shard=10)
    with pytest.raises(DamagedFileError, match="its checksum is not the one in the index"):
        CommittedShard(shard.url, other.sha256, 10).read_table()


def test_the_summary_is_json_of_plain_values(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", repeated(40, 30), per_shard=7)
    kept, summary = deduplicate(shards, str(tmp_path / "out"))
    content = json.loads(storage.read_bytes(kept.deduplication.summary_url))["value"]
    assert content["num_distinct"] == summary.num_distinct
