"""Two real processes over gloo compute what one computes: loss and gradients, in float64."""

from pathlib import Path

import torch

from tests.trainer.gradients import assert_same, gradients_of_ranks, step_gradients, tiny_config
from tests.trainer.making import write_images
from trainer import distributed
from trainer.config import TrainConfig
from trainer.ibot import choose_masked_images
from transforms.core.seeding import derive


def masked_per_rank(config: TrainConfig, step: int) -> list[int]:
    """Masked crops of two ranks, who take turns on the captions."""
    crops = config.captions_per_batch * config.images_per_caption
    chosen = choose_masked_images(crops, 0.5, derive(config.seed, "masked images", step))
    by_caption = chosen.reshape(config.captions_per_batch, -1)
    return [int(by_caption[rank::2].sum()) for rank in range(2)]


def first_step(config: TrainConfig, wanted: list[int]) -> int:
    return next(step for step in range(10_000) if masked_per_rank(config, step) == wanted)


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    exact = {"model": {"drop_path": 0.0}}
    layer_norm = {"contrastive_head": {"norm": "ln", "hidden": 16, "out": 8}}
    own_keys = {"teacher": False, "ibot_weight": 0.0, "positives": "image"}
    chunks = {"ibot_chunk": 3, "contrastive_chunk": 3}
    plain = tiny_config(tmp_path, **exact)
    chunked = tiny_config(tmp_path, **exact, objective=chunks)
    simclr = tiny_config(
        tmp_path, **exact, objective=own_keys, crops={"num_local": 0, "num_global": 2}
    )
    whole = tiny_config(tmp_path, **exact, objective=layer_norm)
    pieces = tiny_config(tmp_path, **exact, objective=layer_norm, accumulation=2)
    unequal = first_step(plain, [3, 1])
    none_masked = first_step(plain, [4, 0])
    cases = [(plain, unequal), (chunked, none_masked), (simclr, 0), (pieces, 2)]
    alone = [step_gradients(*case) for case in [*cases[:3], (whole, 2)]]
    for rank in gradients_of_ranks(cases, 2, tmp_path):
        for expected, result in zip(alone, rank, strict=True):
            assert_same(expected, result)


def test_alone_communication_changes_nothing() -> None:
    tensor = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(tensor) is tensor
    assert distributed.sum_over_ranks(tensor) is tensor
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.any_rank(True, torch.device("cpu"))
