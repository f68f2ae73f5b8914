"""Batches are a pure function of seed and step, for any number of ranks and workers."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.batches import cropped, read, same
from tests.support.image_shards import text_of, write_images
from trainer.data import batch as batch_module
from trainer.data.batch import hex_ids
from trainer.data.crops import crop_image
from trainer.data.sampler import RankSampler
from transforms.core.errors import StorageError
from transforms.core.seeding import caption_id


def test_batches_do_not_depend_on_workers_or_on_where_the_stream_starts(tmp_path: Path) -> None:
    write_images(tmp_path)
    alone = read(tmp_path, 0, 5)
    positions = [sorted(batch.positions.tolist()) for batch in alone[:2]]
    assert positions == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for other in (read(tmp_path, 0, 5, workers=2), [*alone[:2], *read(tmp_path, 2, 5, workers=1)]):
        assert all(same(a, b) for a, b in zip(alone, other, strict=True))


def test_no_two_images_of_any_epoch_or_seed_are_cropped_alike(tmp_path: Path) -> None:
    write_images(tmp_path)
    draws = []
    for samples in (cropped(tmp_path, seed) for seed in (5, 6)):
        rank_sampler = RankSampler(samples.sampler, captions_per_batch=12)
        draws += [samples.batch(rank_sampler(epoch)).crops.global_draws for epoch in range(2)]
    assert len(torch.cat(draws).unique(dim=0)) == 2 * 2 * 12 * 2


def test_ranks_see_the_samples_of_one_process(tmp_path: Path) -> None:
    write_images(tmp_path)
    alone = read(tmp_path, 0, 3)
    shares = [read(tmp_path, 0, 3, rank=rank, ranks=2) for rank in range(2)]
    for step, batch in enumerate(alone):
        for rank in range(2):
            part = shares[rank][step]
            assert torch.equal(part.caption_ids, batch.caption_ids.chunk(2)[rank])
            globals_ = batch.crops.global_pixels.chunk(2)[rank]
            assert torch.equal(part.crops.global_pixels, globals_)


def test_equal_captions_have_equal_ids(tmp_path: Path) -> None:
    write_images(tmp_path)
    first, second = read(tmp_path, 0, 3), read(tmp_path, 3, 6)
    ids = [torch.cat([batch.caption_ids for batch in part]) for part in (first, second)]
    assert sorted(ids[0].tolist()) == sorted(ids[1].tolist()), "two epochs"
    assert len(set(ids[0].tolist())) == 12


@pytest.mark.parametrize(
    "broken", [{"broken": (2, 6)}, {"broken_text": (2,), "broken_json": (6,)}], ids=str
)
def test_broken_samples_are_counted_and_replaced(
    tmp_path: Path, broken: dict[str, tuple[int, ...]]
) -> None:
    write_images(tmp_path / "whole")
    write_images(tmp_path / "broken", **broken)  # type: ignore[arg-type]
    whole, repaired = read(tmp_path / "whole", 0, 3), read(tmp_path / "broken", 0, 3)
    assert sum(batch.num_replaced for batch in whole) == 0
    assert sum(batch.num_replaced for batch in repaired) >= 2
    ids = torch.cat([batch.caption_ids for batch in whole])
    replaced = torch.cat([batch.caption_ids for batch in repaired])
    assert (ids != replaced).sum() == 2
    again = read(tmp_path / "broken", 0, 3, workers=2)
    assert all(same(a, b) for a, b in zip(repaired, again, strict=True))
    shares = [read(tmp_path / "broken", 0, 3, rank=rank, ranks=2) for rank in range(2)]
    for batch, *parts in zip(repaired, *shares, strict=True):
        assert torch.equal(batch.caption_ids, torch.cat([part.caption_ids for part in parts]))


def test_a_broken_sample_is_replaced_by_the_next_of_its_shard(tmp_path: Path) -> None:
    write_images(tmp_path, (8, 8), broken=(2, 11, 12))
    batches_ = read(tmp_path, 0, 4)
    assert sum(batch.num_replaced for batch in batches_) == 1 + 2 + 1, "12 was tried twice"
    ids = {
        position: caption
        for batch in batches_
        for position, caption in zip(
            batch.positions.tolist(), hex_ids(batch.caption_ids), strict=True
        )
    }
    order = cropped(tmp_path).sampler(range(16)).tolist()
    for broken, instead in ((2, 3), (11, 13), (12, 13)):
        assert ids[order.index(broken)] == ids[order.index(instead)] == caption_id(text_of(instead))


@pytest.mark.parametrize(
    "wrong", [{"broken": range(12)}, {"images_per_caption": 1}, {"images_per_caption": 3}], ids=str
)
def test_when_nothing_can_be_used_the_stream_ends_with_a_sentence(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    write_images(tmp_path, **wrong)
    with pytest.raises(StorageError, match="cannot be decoded or do not have 2 images"):
        read(tmp_path, 0, 1)


def test_an_image_that_cannot_be_cropped_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path)
    calls: list[int] = []

    def fail_once(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no kernel for this image")
        return crop_image(*arguments, **settings)

    monkeypatch.setattr(batch_module, "crop_image", fail_once)
    (batch,) = read(tmp_path, 0, 1)
    assert batch.num_replaced == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vanished_shard_ends_the_stream_with_its_name(tmp_path: Path, workers: int) -> None:
    folder = write_images(tmp_path)
    Path(folder.shard_url(1)).unlink()
    with pytest.raises(StorageError, match=r"images-000001\.tar is gone"):
        read(tmp_path, 0, 3, workers=workers)


def test_a_damaged_shard_ends_the_stream_and_is_not_replaced(tmp_path: Path) -> None:
    os.truncate(write_images(tmp_path).shard_url(1), 700)
    with pytest.raises(StorageError, match=r"images-000001\.tar is damaged"):
        read(tmp_path, 0, 3)
