from collections.abc import Sequence
from typing import Any

import pytest

from pipelines import retry_failed
from pipelines.__main__ import main
from tests.support.captions import make_captions
from tests.support.fault_matrix import NUM_CAPTIONS, Matrix
from tests.support.fault_process import Blocks
from trainer.data.shard_reader import ShardReader
from transforms.core import storage
from transforms.core.errors import ConfigError, UnfinishedError
from transforms.core.index import read_success
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES, find_outputs
from transforms.engines.image.base import Painted
from transforms.engines.image.diffusers import DiffusersConfig

IDS = [caption.caption_id for caption in make_captions(NUM_CAPTIONS)]
TEXTS = [caption.text for caption in make_captions(NUM_CAPTIONS)]


@pytest.fixture
def unpaintable(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Numbers of captions for which the engine raises an error."""
    numbers = {3, 8, 9, 15}
    paint = Blocks.paint

    def raises(engine: Blocks, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        if any(TEXTS[number] in texts for number in numbers):
            raise RuntimeError("no such chair")
        return paint(engine, texts, seeds)

    monkeypatch.setattr(Blocks, "paint", raises)
    return numbers


def retry(matrix: Matrix) -> int:
    return main(["retry-failed", str(matrix.config)])


def ids(matrix: Matrix) -> list[str]:
    reader = ShardReader(f"{matrix.run}/images/index.parquet", images_per_caption=4)
    return [sample.caption_id for sample in reader]


def num_failures(matrix: Matrix) -> int:
    success = read_success(StageFolder(f"{matrix.run}/images", STAGES["images"]))
    assert success is not None
    return int(success["num_failures"])


def test_what_failed_is_painted_into_further_shards(
    matrix: Matrix, unpaintable: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert matrix.again() == 0
    made = [number for number in range(NUM_CAPTIONS) if number not in unpaintable]
    assert ids(matrix) == [IDS[number] for number in made]
    assert num_failures(matrix) == 4

    unpaintable -= {3, 9, 15}
    assert retry(matrix) == 0
    made += [3, 9, 15]
    assert ids(matrix) == [IDS[number] for number in made]
    assert num_failures(matrix) == 1
    assert matrix.verify() == 0

    unpaintable.clear()
    assert retry(matrix) == 0
    assert ids(matrix) == [IDS[number] for number in [*made, 8]]
    assert num_failures(matrix) == 0

    before = storage.list_times(f"{matrix.run}/images/retry-2")
    assert retry(matrix) == matrix.again() == matrix.verify() == 0
    assert "no dead letters" in capsys.readouterr().err
    assert storage.list_times(f"{matrix.run}/images/retry-2") == before
    assert not storage.exists(f"{matrix.run}/images/retry-3")
    digests = [output.metadata["generator_digest"] for output in find_outputs(matrix.run)]
    assert len(set(digests)) == 3, "with the same seeds, a blank image would stay blank"


def test_a_retry_that_was_cut_short_goes_on(
    matrix: Matrix, unpaintable: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert matrix.again() == 0
    unpaintable.clear()

    def dies(*arguments: Any) -> None:
        raise UnfinishedError("died")

    with monkeypatch.context() as patch:
        patch.setattr(retry_failed, "paint", dies)
        assert retry(matrix) == 1
    assert len(ids(matrix)) == NUM_CAPTIONS - 4, "an unfinished retry is not in the index"
    assert retry(matrix) == 0
    assert sorted(ids(matrix)) == sorted(IDS)


def test_images_come_first(matrix: Matrix, capsys: pytest.CaptureFixture[str]) -> None:
    assert retry(matrix) == 1
    assert "run `python -m pipelines images` until it is" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["generator.guidance=1.5", "seed=1", "captions_per_shard=4"])
def test_other_settings_are_refused(
    matrix: Matrix, unpaintable: set[int], change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert matrix.again() == 0
    unpaintable.clear()
    before = storage.list_times(matrix.run)
    assert main(["retry-failed", str(matrix.config), change]) == 2
    assert change.partition("=")[0] in capsys.readouterr().err
    assert storage.list_times(matrix.run) == before, "nothing is written"
    assert retry(matrix) == matrix.verify() == 0
    assert sorted(ids(matrix)) == sorted(IDS)


def test_a_missing_device_is_an_error_before_anything_is_painted(
    matrix: Matrix, unpaintable: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert matrix.again() == 0

    def absent(config: DiffusersConfig) -> None:
        raise ConfigError(f"no {config.device}")

    monkeypatch.setattr(DiffusersConfig, "check_device", absent)
    assert retry(matrix) == 2
    assert not storage.exists(f"{matrix.run}/images/retry-1/shards")


def damage(matrix: Matrix, path: str) -> None:
    url = f"{matrix.run}/images/{path}"
    content = storage.read_bytes(url)
    storage.replace_bytes(content[: len(content) // 2], url)


def test_a_damaged_shard_of_a_retry_is_painted_again(
    matrix: Matrix, unpaintable: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert matrix.again() == 0
    unpaintable.clear()
    assert retry(matrix) == 0
    before = ids(matrix), matrix.checksums()
    damage(matrix, "retry-1/shards/000/images-000001.tar")
    assert matrix.verify() == 1
    assert "then run images, then retry-failed again" in capsys.readouterr().err.splitlines()[-1]
    assert matrix.verify("repair=true") == 1
    assert "run images, then retry-failed again" in capsys.readouterr().err.splitlines()[-1]
    assert not storage.exists(f"{matrix.run}/images/index.parquet"), "it lists a deleted shard"
    assert matrix.again() == 0
    assert len(ids(matrix)) == NUM_CAPTIONS - 4
    assert retry(matrix) == matrix.verify() == 0
    assert (ids(matrix), matrix.checksums()) == before


@pytest.mark.parametrize("still", [set(), {8}])
def test_a_caption_is_not_painted_by_a_shard_and_by_a_retry(
    matrix: Matrix, unpaintable: set[int], still: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert matrix.again() == 0
    unpaintable.intersection_update(still)
    assert retry(matrix) == 0
    damage(matrix, "shards/000/images-000001.tar")  # Caption 3 failed in it.
    assert matrix.verify("repair=true") == 1
    assert matrix.again() == 1
    assert "images/retry-1 holds records that did not fail" in capsys.readouterr().err
    assert matrix.verify() == 1
    assert "1 of its captions are painted twice" in capsys.readouterr().out
    storage.delete_folder(f"{matrix.run}/images/retry-1")
    assert matrix.again() == retry(matrix) == matrix.verify() == 0
    assert sorted(ids(matrix)) == sorted(i for n, i in enumerate(IDS) if n not in still)


@pytest.mark.parametrize("lost", [["plan.json"], ["run.yaml"], ["run.yaml", "plan.json"]])
def test_a_complete_retry_gets_its_lost_settings_again(
    matrix: Matrix, unpaintable: set[int], lost: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert matrix.again() == 0
    unpaintable.clear()
    assert retry(matrix) == 0
    urls = [f"{matrix.run}/images/retry-1/{name}" for name in lost]
    before = [storage.read_bytes(url) for url in urls]
    shards = storage.list_times(f"{matrix.run}/images/retry-1/shards")
    for url in urls:
        storage.delete(url)
    capsys.readouterr()
    assert matrix.verify() == 1
    said = capsys.readouterr().out
    assert f"images/retry-1/{lost[-1]}: is lost" in said
    assert "run `python -m pipelines images`, then `python -m pipelines retry-failed`" in said
    assert matrix.again() == retry(matrix) == matrix.verify() == 0
    assert [storage.read_bytes(url) for url in urls] == before
    assert storage.list_times(f"{matrix.run}/images/retry-1/shards") == shards
