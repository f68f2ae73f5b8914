"""Features on disk: computed once, shared by ranks, continued after a kill."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support.evaluation import save_checkpoint, save_pictures
from tests.support.ranks import run_on_ranks
from trainer import distributed
from trainer.evaluate import feature_cache
from trainer.evaluate.datasets import Picture, Split, load_dataset
from trainer.evaluate.feature_cache import compute, folder_of, read
from trainer.evaluate.features import Extracted, Subject, pixels_subject
from trainer.evaluate.protocols import PROTOCOLS, config_class
from trainer.evaluate.scoring import evaluate
from transforms.core import storage

PIXELS = pixels_subject()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "PART", 4)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    save_pictures(tmp_path / "colours", {"train": 5, "test": 1})
    return load_dataset(f"folder:{tmp_path / 'colours'}").train  # 12 pictures.


def test_features_come_back_whatever_ended_the_last_start(split: Split, any_storage: str) -> None:
    class KilledError(Exception):
        pass

    def stop_at_six(count: int) -> None:
        seen.append(count)
        if sum(seen) == 6:
            raise KilledError

    seen: list[int] = []
    with pytest.raises(KilledError):
        compute(any_storage, PIXELS, split, stop_at_six)
    assert len(storage.list_files(any_storage)) == 1, "the second part was not finished"

    read_pictures: list[int] = []
    whole = PIXELS.extract(split.pictures, lambda count: None)

    def extract(pictures: Sequence[Picture], done: Callable[[int], object]) -> Extracted:
        read_pictures.append(len(pictures))
        return PIXELS.extract(pictures, done)

    counted = Subject("pixels", extract)
    compute(any_storage, counted, split, lambda count: None)
    assert read_pictures == [4, 4], "the first part is kept"
    assert (read(any_storage, counted, split).values == whole.values).all()
    assert read_pictures == [4, 4]

    storage.replace_bytes(b"damaged", storage.join(any_storage, "part-000001.npz"))
    assert (read(any_storage, counted, split).values == whole.values).all()
    assert read_pictures == [4, 4, 4], "the damaged part is computed again"
    assert (read(any_storage, PIXELS, split).readable).all()


def test_the_folder_depends_on_weights_pictures_and_split(tmp_path: Path) -> None:
    save_pictures(tmp_path / "colours", {"train": 5, "test": 1})
    dataset = load_dataset(f"folder:{tmp_path / 'colours'}")
    found = {folder_of("cache", PIXELS, dataset, name) for name in dataset.splits}
    found.add(folder_of("cache", pixels_subject(), dataset, "train"))
    assert len(found) == 3
    (tmp_path / "colours" / "train" / "red" / "000.png").unlink()
    changed = load_dataset(f"folder:{tmp_path / 'colours'}")
    assert folder_of("cache", PIXELS, changed, "train") not in found


def score(folder: str) -> dict[str, object]:
    feature_cache.PART = 4
    config = config_class().model_validate(
        {
            "run": f"{folder}/run",
            "checkpoint": f"{folder}/model",
            "datasets": [f"folder:{folder}/colours"],
            "num_untrained": 1,
            "device": "cpu",
        }
    )
    computed: list[int] = []
    write = feature_cache._write

    def counting(folder: str, number: int, part: Extracted) -> None:
        computed.append(number)
        write(folder, number, part)

    feature_cache._write = counting
    line = evaluate(["knn"], config, PROTOCOLS)
    feature_cache._write = write
    return {"line": line, "computed": len(computed), "rank": distributed.rank()}


def test_ranks_share_the_work_and_give_the_scores_of_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model")
    save_pictures(tmp_path / "colours", {"train": 10, "test": 8})
    (tmp_path / "out").mkdir()
    ranks = run_on_ranks(score, 2, tmp_path / "out", str(tmp_path))
    assert all(rank["computed"] > 0 for rank in ranks)
    total = sum(rank["computed"] for rank in ranks)
    assert "Scored " in ranks[0]["line"]
    assert ranks[1]["line"] == "", "rank 0 writes and prints"
    both = np.array([line.split()[-6:] for line in ranks[0]["line"].splitlines()[1:-1]])

    (tmp_path / "run").rename(tmp_path / "run-of-two")
    alone = score(str(tmp_path))
    assert alone["computed"] == total
    found = np.array([line.split()[-6:] for line in str(alone["line"]).splitlines()[1:-1]])
    assert (found == both).all()
