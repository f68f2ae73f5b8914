"""Several gloo processes compute the same loss and gradients as one process, in float64."""

from pathlib import Path

import pytest
import torch

from tests.support.gradients import (
    anchor_losses,
    anchor_losses_of_ranks,
    assert_same,
    by_position,
    gradients_of_ranks,
    step_gradients,
    tiny_config,
)
from tests.support.image_shards import write_images
from trainer import distributed
from trainer.config import TrainConfig
from trainer.data.masking import choose_masked_images
from trainer.data.sampler import RankSampler
from trainer.execution import ExecutionConfig
from trainer.training.session import open_samples
from transforms.core.seeding import derive

pytestmark = pytest.mark.xdist_group("processes")

Case = tuple[TrainConfig, int]
"""Config of a training, and one of its steps."""


def masked_per_rank(config: TrainConfig, step: int) -> list[int]:
    """Return the number of masked crops on each of two ranks."""
    captions = config.captions_per_batch
    chosen = choose_masked_images(
        captions * config.images_per_caption, 0.5, derive(config.seed, "masked images", step)
    )
    by_caption = chosen.reshape(captions, -1)
    sampler = open_samples(config).sampler
    shares = [RankSampler(sampler, captions, rank, ranks=2)(step) for rank in range(2)]
    return [int(by_caption[share.positions - step * captions].sum()) for share in shares]


def first_step(config: TrainConfig, wanted: list[int]) -> int:
    return next(step for step in range(1000) if masked_per_rank(config, step) == wanted)


def cases(run: Path) -> tuple[list[Case], list[Case]]:
    """Return steps for one process, and the same steps for several ranks."""
    write_images(run / "images")
    exact = {"model": {"drop_path": 0.4}}
    layer_norm = {"contrastive_head": {"norm": "ln", "hidden": 16, "out": 8}}
    own_keys = {"teacher": False, "ibot_weight": 0.0, "positives": "image"}
    chunks = {"ibot_chunk": 3, "contrastive_chunk": 3}
    plain = tiny_config(run, **exact)
    chunked = tiny_config(run, **exact, objective=chunks)
    simclr = tiny_config(run, **exact, objective=own_keys, crops={"num_local": 0, "num_global": 2})
    whole = tiny_config(run, **exact, objective=layer_norm, captions_per_batch=16)
    pieces = whole.model_copy(update={"accumulation": 2})
    sharded = pieces.model_copy(update={"execution": ExecutionConfig(sharding="shard")})
    unequal = first_step(plain, [3, 1])
    none_masked = first_step(plain, [4, 0])
    apart = tiny_config(
        run,
        **exact,
        objective={"contrastive_head": {"statistics": "apart", "hidden": 16, "out": 8}},
    )
    shared = [(plain, unequal), (chunked, none_masked), (simclr, 0), (apart, 0)]
    # The data have 12 captions, so four of them are twice in the batch.
    return [*shared, (whole, 0), (whole, 0)], [*shared, (pieces, 0), (sharded, 0)]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_are_one_process(tmp_path: Path, ranks: int) -> None:
    """With two ranks the numbers of masked crops are 3 and 1, and 4 and 0."""
    alone, spread = cases(tmp_path)
    expected = [step_gradients(*case) for case in alone]
    for rank in gradients_of_ranks(spread, ranks, tmp_path):
        for one, several in zip(expected, rank, strict=True):
            assert_same(one, several)


def test_drop_path_draws_by_sample(tmp_path: Path) -> None:
    """Each anchor has the same loss on one, two and four ranks, with DDP, FSDP, micro-batches."""
    write_images(tmp_path / "images")
    changes = {"crops": {"num_local": 2}, "captions_per_batch": 8, "model": {"drop_path": 0.4}}
    whole = tiny_config(tmp_path, **changes)
    layer_norm = {"contrastive_head": {"norm": "ln", "hidden": 16, "out": 8}}
    whole_ln = tiny_config(tmp_path, **changes, objective=layer_norm)
    pieces = whole_ln.model_copy(update={"accumulation": 2})
    sharded = pieces.model_copy(update={"execution": ExecutionConfig(sharding="shard")})
    expected, expected_ln = (anchor_losses(config, 1) for config in (whole, whole_ln))
    expected, expected_ln = ((by_position([one]), other) for one, other in (expected, expected_ln))
    alone = anchor_losses(pieces, 1)
    assert_same((by_position([alone[0]]), alone[1]), expected_ln)
    for ranks in (2, 4):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        results = anchor_losses_of_ranks([whole, pieces, sharded], 1, ranks, folder)
        for result, same in zip(results, (expected, expected_ln, expected_ln), strict=True):
            assert_same(same, result)
    without = tiny_config(tmp_path, **{**changes, "model": {"drop_path": 0.0}})
    assert not torch.allclose(anchor_losses(without, 1)[0]["global"], expected[0]["global"])


def test_alone_communication_changes_nothing() -> None:
    tensor = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(tensor) is tensor
    assert distributed.sum_over_ranks(tensor) is tensor
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.any_rank(True, False) == [True, False]


def test_ranks_of_this_machine_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.ranks_on_machine() == 1
    monkeypatch.setattr(distributed, "gather_objects", lambda host: [host, "another", host])
    assert distributed.ranks_on_machine() == 2


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("closed by peer"), distributed.LostRankError),
        (torch.OutOfMemoryError("no memory"), torch.OutOfMemoryError),
    ],
)
def test_only_what_others_do_is_called_a_lost_rank(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(distributed, "is_on", lambda: True)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    with pytest.raises(expected, match=str(raised)):
        distributed.all_reduce(torch.zeros(1))
