"""Each kind of damage to a stage is found and named; an undamaged stage has no problem."""

import dataclasses
import json
import re
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from tests.support.captions import caption
from tests.support.image_sets import image_set
from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Count, Tally
from transforms.core.errors import DamagedFileError
from transforms.core.fingerprint import Fingerprint
from transforms.core.index import index_metadata, write_index
from transforms.core.records import Caption, Failure, ImageSet
from transforms.core.seeding import derive
from transforms.core.shards import StageFolder, read_commit
from transforms.core.stages import STAGES, StageOutput
from transforms.verify import Problem, Verification, verify

PER_SHARD = 3


def seeded(number: int) -> ImageSet:
    made = image_set(number)
    key = made.caption.caption_id
    seeds = tuple(derive("generator", key, n, number % 2) for n in range(4))
    return dataclasses.replace(made, seeds=seeds)


def expected_ids(shard: int) -> list[str]:
    numbers = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
    return [caption(number).caption_id for number in numbers]


def images(url: str, change: Callable[[ImageSet], ImageSet] = lambda made: made) -> Verification:
    """Two shards of three image sets; the last of each fails, and `change` alters a first one."""
    output = StageOutput(
        folder=StageFolder(url, STAGES["images"]),
        fingerprint=Fingerprint({"kind": "images"}),
        config={},
        num_shards=2,
        num_records=2 * PER_SHARD,
        metadata={"images_per_caption": "4", "generator_digest": "generator"},
    )
    records = []
    for shard in range(2):
        first = shard * PER_SHARD
        made = [seeded(first), seeded(first + 1)]
        lost = Failure(expected_ids(shard)[2], str(Count.IMAGE_BLANK), "")
        with ShardBuild(output.folder, shard) as build:
            made[0] = change(made[0]) if shard == 1 else made[0]
            build.write([*made, lost])
            ids = [*(each.caption.caption_id for each in made), lost.record_id]
            records.append(build.commit(ids, output.fingerprint.digest, Tally()))
    write_index(output.folder, records, {})
    return Verification(output, expected_ids, decode=True)


def found(whole: Verification) -> list[Problem]:
    return list(verify(whole, 2, lambda: None))


def test_a_whole_stage_has_no_problem(any_storage: str) -> None:
    assert found(images(any_storage)) == []


def another_text(made: ImageSet) -> ImageSet:
    return dataclasses.replace(made, caption=dataclasses.replace(made.caption, text="a hat"))


CHANGES: list[tuple[Callable[[ImageSet], ImageSet], str]] = [
    (another_text, "its text is another caption's"),
    (lambda made: seeded(99), "does not hold the expected records"),
    (lambda made: dataclasses.replace(made, seeds=made.seeds[::-1]), "its seeds are not those"),
    (
        lambda made: dataclasses.replace(made, images=made.images[:3], seeds=made.seeds[:3]),
        r"it has the images \[0, 1, 2\]",
    ),
    (
        lambda made: dataclasses.replace(made, images=(made.images[0][:150], *made.images[1:])),
        "image 0.jpg does not decode",
    ),
]


@pytest.mark.parametrize(("change", "what"), CHANGES)
def test_wrong_content(tmp_path: Path, change: Callable[[ImageSet], ImageSet], what: str) -> None:
    problems = found(images(str(tmp_path), change))
    assert {problem.damaged_shard for problem in problems} == {1}
    assert {problem.path for problem in problems} == {"shards/000/images-000001.tar"}
    assert any(re.search(what, problem.what) for problem in problems), problems


def test_wrong_files(any_storage: str) -> None:
    whole = images(any_storage)
    for name in ("shards/000/images-000000.tar", "failures/000/images-000001.parquet"):
        storage.delete(f"{any_storage}/{name}")
    strangers = ["shards/000/notes.txt", "commits/000/images-000001.tmp.json"]
    for name in [*strangers, "shards/001/images-000001.tar"]:
        storage.publish_bytes(b"", f"{any_storage}/{name}")
    problems = {problem.path: problem for problem in found(whole)}
    assert problems["shards/000/images-000000.tar"].what.startswith("is missing")
    assert "its dead letters" in problems["shards/000/images-000001.tar"].what
    for name in [*strangers, "shards/001/images-000001.tar"]:
        assert problems[name].what.startswith("unknown file")
        assert problems[name].damaged_shard is None


SHARD, LETTERS, COMMIT = (
    "shards/000/images-000001.tar",
    "failures/000/images-000001.parquet",
    "commits/000/images-000001.json",
)


@pytest.mark.parametrize(
    ("damaged", "spoilt"),
    [
        ([SHARD], {SHARD, LETTERS, COMMIT}),
        ([COMMIT], {COMMIT}),
        ([LETTERS], {LETTERS, COMMIT}),
        ([SHARD, COMMIT], {SHARD, LETTERS, COMMIT}),
        ([LETTERS, COMMIT], {COMMIT}),  # The worker that adopts the shard writes them again.
    ],
)
@pytest.mark.parametrize("is_missing", [False, True])
def test_only_what_is_damaged_has_to_go(
    tmp_path: Path, damaged: list[str], spoilt: set[str], is_missing: bool
) -> None:
    whole = images(str(tmp_path))
    if is_missing and COMMIT in damaged:
        return  # Without a commit record, the shard is an orphan.
    for name in damaged:
        content = storage.read_bytes(f"{tmp_path}/{name}")
        storage.delete(f"{tmp_path}/{name}")
        if not is_missing:
            storage.publish_bytes(content[: len(content) // 2], f"{tmp_path}/{name}")
    problems = found(whole)
    assert {problem.damaged_shard for problem in problems} == {1}
    assert {path for problem in problems for path in problem.spoilt} == spoilt


def test_dead_letters_of_other_records_have_to_go(tmp_path: Path) -> None:
    whole = images(str(tmp_path))
    folder = whole.output.folder
    storage.replace_bytes(storage.read_bytes(folder.failures_url(0)), folder.failures_url(1))
    (problem,) = found(whole)
    assert problem.what == "does not hold the expected records in their order"
    assert problem.spoilt == (LETTERS, COMMIT), "the shard has the checksum of its commit record"


def test_captions_that_cannot_be_read_are_no_end_of_the_check(tmp_path: Path) -> None:
    whole = images(str(tmp_path))
    storage.replace_bytes(b"", whole.output.folder.shard_url(1))

    def unknown(shard: int) -> list[str]:
        raise DamagedFileError("the captions are damaged")

    problems = found(dataclasses.replace(whole, expected_ids=unknown))
    assert problems[-1].what.endswith("what they were made of: the captions are damaged")
    assert {problem.damaged_shard for problem in problems} == {1, None}


def test_an_index_of_other_shards_than_the_retries(tmp_path: Path) -> None:
    whole = images(str(tmp_path))
    retry = whole.output.folder.retry(1)
    made = seeded(2)
    with ShardBuild(retry, 0) as build:
        build.write([made])
        record = build.commit([made.caption.caption_id], "print", Tally())
    write_index(retry, [record], {})
    (problem,) = found(whole)
    assert (problem.path, problem.what) == (
        "index.parquet",
        "does not agree with the commit records",
    )
    write_index(whole.output.folder, [read_commit(whole.output.folder, n) for n in range(2)], {})
    assert found(whole) == []
    storage.delete(retry.shard_url(0))
    assert [problem.path for problem in found(whole)] == ["index.parquet"]


def test_numbers_of_success_are_compared(tmp_path: Path) -> None:
    whole = images(str(tmp_path))
    url = whole.output.folder.success_url
    summary = json.loads(storage.read_bytes(url))
    storage.replace_bytes(json.dumps({**summary, "num_failures": 3}).encode(), url)
    (problem,) = found(whole)
    assert (problem.path, problem.spoilt) == ("_SUCCESS", ("_SUCCESS", "index.parquet"))
    del summary["num_failures"]  # Earlier versions did not write it.
    storage.replace_bytes(json.dumps(summary).encode(), url)
    assert found(whole) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"num_shards": 1},
        {"num_records": 5},
        {"metadata": {"images_per_caption": "4", "generator_digest": "generatos"}},
        {"metadata": {"images_per_caption": "4", "generator_digess": "generator"}},
    ],
)
def test_a_plan_that_contradicts_the_index_is_no_damage_to_shards(
    tmp_path: Path, damage: dict[str, object]
) -> None:
    whole = images(str(tmp_path))
    folder, output = whole.output.folder, whole.output
    records = [read_commit(folder, shard) for shard in range(2)]
    write_index(folder, records, index_metadata("images", "digest", output.metadata))
    assert found(whole) == []
    changed = dataclasses.replace(output, **damage)  # type: ignore[arg-type]
    (problem,) = found(dataclasses.replace(whole, output=changed))
    assert (problem.path, problem.damaged_shard, problem.spoilt) == ("plan.json", None, ())
    assert "run `python -m pipelines images` to write it again" in problem.what


def test_a_stage_that_grows_has_no_wrong_plan(tmp_path: Path) -> None:
    whole = images(str(tmp_path))
    grown = dataclasses.replace(whole.output, num_shards=3, num_records=9)
    (problem,) = found(dataclasses.replace(whole, output=grown))
    assert "1 shards are not committed" in problem.what


def test_unfinished_business(tmp_path: Path) -> None:
    whole = images(str(tmp_path))
    for name in ("commits/000/images-000001.json", "index.parquet"):
        storage.delete(f"{tmp_path}/{name}")
    (orphan, missing) = found(whole)
    assert orphan.what.startswith("an orphan")
    assert missing.what == "1 shards are not committed (first: 1)"
    assert orphan.damaged_shard is missing.damaged_shard is None


def test_records_of_another_fingerprint(tmp_path: Path) -> None:
    whole = images(str(tmp_path))
    other = dataclasses.replace(whole.output, fingerprint=Fingerprint({"kind": "other"}))
    problems = found(dataclasses.replace(whole, output=other))
    assert [problem.damaged_shard for problem in problems] == [0, 1]
    assert all("another fingerprint" in problem.what for problem in problems)


def test_an_index_that_says_other_things(tmp_path: Path) -> None:
    whole = images(str(tmp_path))
    folder = whole.output.folder
    records = [read_commit(folder, shard) for shard in range(2)]
    write_index(folder, [records[0], dataclasses.replace(records[1], num_samples=7)], {})
    assert [problem.path for problem in found(whole)] == ["index.parquet"]
    storage.replace_bytes(b"PAR1", folder.index_url)
    assert [problem.path for problem in found(whole)] == ["index.parquet"]


def captions(url: str, made: Sequence[Caption]) -> Verification:
    """A shard of captions."""
    output = StageOutput(
        folder=StageFolder(url, STAGES["captions"]),
        fingerprint=Fingerprint({}),
        config={},
        num_shards=1,
        num_records=len(made),
    )
    ids = [str(each.ordinal) for each in made]
    with ShardBuild(output.folder, 0) as build:
        build.write(made)
        record = build.commit(ids, output.fingerprint.digest, Tally())
    write_index(output.folder, [record], {})
    return Verification(output, lambda shard: ids, decode=True)


def test_captions_are_named_by_their_text(tmp_path: Path) -> None:
    wrong = dataclasses.replace(caption(1), caption_id="0" * 16)
    (problem,) = found(captions(str(tmp_path), [caption(0), wrong]))
    assert problem.what == "has 1 captions whose id is not the hash of their text"
    assert problem.damaged_shard == 0


@pytest.mark.parametrize("of", ["captions", "images", "failures", "index", "_SUCCESS"])
def test_a_flipped_bit_anywhere_is_a_problem_of_its_file(of: str) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    made = captions(url, [caption(n) for n in range(5)]) if of == "captions" else images(url)
    folder = made.output.folder
    others = {
        "failures": folder.failures_url(0),
        "index": folder.index_url,
        "_SUCCESS": folder.success_url,
    }
    path = others.get(of, folder.shard_url(0))
    content = storage.read_bytes(path)
    random = Random(0)
    for _ in range(150):
        place = random.randrange(len(content))
        changed = bytes([content[place] ^ 1 << random.randrange(8)])
        storage.replace_bytes(content[:place] + changed + content[place + 1 :], path)
        problems = found(dataclasses.replace(made, decode=False))
        # Damage to the reason of a dead letter may go unnoticed.
        assert problems or of == "failures"
        assert {problem.damaged_shard for problem in problems} <= {
            None if of in ("index", "_SUCCESS") else 0
        }
