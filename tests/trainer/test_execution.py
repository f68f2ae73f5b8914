"""Recomputation, compilation and sharding do not change the training or its checkpoints."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch._dynamo.backends.distributed import DDPOptimizer

from benchmarks.step_memory import peak_gib
from tests.support.evaluation import save_pictures
from tests.support.gradients import assert_same, exact_networks, step_gradients, tiny_config
from tests.support.image_shards import write_images
from tests.support.ranks import run_on_ranks
from tests.support.training_runs import flat
from trainer import distributed
from trainer.config import TrainConfig
from trainer.data.loader import batches
from trainer.execution import ExecutionConfig, prepare
from trainer.monitor.online_knn import OnlineKNN
from trainer.training.session import open_samples, rank_batches
from trainer.training.step import Training

NO_COLOURS = {"jitter": 0.0, "grey": 0.0, "global_solarise": 0.0}
"""Without colour augmentation, which is always in float32 and is compiled, too."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path


@pytest.mark.parametrize("recompute", ["elementwise", "blocks"])
def test_recomputed_blocks_have_the_same_gradient(run: Path, recompute: str) -> None:
    """With drop path: recomputation drops the same blocks again."""
    plain = tiny_config(run)
    assert plain.model.drop_path > 0
    recomputed = tiny_config(run, execution={"recompute": recompute})
    assert_same(step_gradients(plain, 0), step_gradients(recomputed, 0))


def test_recomputing_in_bfloat16_changes_no_bit(run: Path) -> None:
    """Global and local crops share weights, and could share cached bfloat16 copies of them."""
    states = []
    for recompute in ("nothing", "elementwise", "blocks"):
        config = tiny_config(run, precision="bf16", execution={"recompute": recompute})
        training = Training(config, torch.device("cpu"))
        for batch in rank_batches(config, open_samples(config), range(2)):
            training.update(batch)
        states.append(training.student.state_dict())
    for name, value in states[0].items():
        assert all(torch.equal(value, state[name]) for state in states[1:]), name


def assert_compiled_is_plain(run: Path, *recomputed: str) -> None:
    """With drop path: compiled blocks leave out the same branches, also when computed again."""
    exact = {"model": {"drop_path": 0.5}, "photometric": NO_COLOURS}
    plain = step_gradients(tiny_config(run, **exact), 0)
    for recompute in recomputed:
        execution = {"compile": True, "recompute": recompute}
        assert_same(plain, step_gradients(tiny_config(run, **exact, execution=execution), 0))


@pytest.mark.xdist_group("models")
@pytest.mark.slow
def test_compiled_blocks_and_losses_have_the_same_gradient(run: Path) -> None:
    """With the code that Inductor generates; `elementwise` depends the most on its partitions."""
    assert_compiled_is_plain(run, "elementwise")


@pytest.mark.slow
@pytest.mark.usefixtures("no_generated_code")
def test_traced_blocks_and_losses_have_the_same_gradient(run: Path) -> None:
    assert_compiled_is_plain(run, "nothing", "elementwise", "blocks")


@pytest.mark.slow
@pytest.mark.usefixtures("no_generated_code")
@pytest.mark.parametrize("recompute", ["nothing", "elementwise", "blocks"])
def test_a_training_compiles_few_programs_and_all_of_them_in_its_first_step(
    run: Path, recompute: str
) -> None:
    """For any depth of the encoder, size of the last chunk and temperature of the teacher."""
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    config = tiny_config(
        run,
        model={"depth": 4, "drop_path": 0.3},
        photometric=NO_COLOURS,
        objective={"ibot_chunk": 5, "contrastive_chunk": 3},
        execution={"compile": True, "recompute": recompute},
    )
    training = Training(config, torch.device("cpu"))
    for batch in rank_batches(config, open_samples(config), range(3)):
        training.update(batch)
        # Blocks: student on global and on local crops, teacher. Losses: two sums of Sinkhorn-Knopp,
        # iBOT and the contrastive loss.
        assert counters["unique_graphs"] == 3 + 4
    assert training.values()["loss"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_generated_code")
def test_several_ranks_compile_blocks_whole(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[object] = []
    split = DDPOptimizer.compile_fn

    def noted(optimizer: DDPOptimizer, *arguments: Any) -> Any:
        splits.append(optimizer)
        return split(optimizer, *arguments)

    monkeypatch.setattr(DDPOptimizer, "compile_fn", noted)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        config = tiny_config(run, photometric=NO_COLOURS, execution={"compile": True})
        training = Training(config, torch.device("cpu"))
        training.update(next(rank_batches(config, open_samples(config), range(1))))
        assert training.values()["loss"] > 0
    finally:
        distributed.stop()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0 and not splits


def train(config: TrainConfig, steps: range, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the state after some steps in float64, from the beginning or from a state.

    The size of AdamW's first updates is the learning rate, whatever the size of the gradient, so
    rounding noise of float32 would count like a gradient. That of float64 is far below the
    optimiser's epsilon.
    """
    torch.set_default_dtype(torch.float64)
    training = Training(config, torch.device("cpu"))
    torch.set_default_dtype(torch.float32)
    if state is not None:
        training.restore(copy.deepcopy(state))
    for batch in batches(
        open_samples(config),
        config.loader,
        first_step=steps.start,
        last_step=steps.stop,
        captions_per_batch=config.captions_per_batch,
        rank=distributed.rank(),
        ranks=distributed.world_size(),
    ):
        training.update(batch)
    state = copy.deepcopy(training.state())
    elsewhere = config.execution.sharding == "shard" and distributed.rank() > 0
    moments = state["optimizer"]["state"].get(0, {"exp_avg": state["student"]["mask_token"]})
    for value in (state["student"]["mask_token"], moments["exp_avg"]):
        assert (value is None) == elsewhere, "only rank 0 has sharded tensors whole"
    first: dict[str, Any] = distributed.gather_objects(state)[0]
    return first


def train_in_turns(run: str) -> dict[str, dict[str, Any]]:
    """States of trainings that are sharded or replicated, the second half after either first."""
    optim = {"clip_norm": 0.5, "learning_rate": 1e-3, "warmup": 0}
    changes: dict[str, Any] = {"model": {"drop_path": 0.0}, "optim": optim}
    replicate = tiny_config(run, **changes)
    shard = tiny_config(run, **changes, execution={"sharding": "shard"})
    halfway = {name: train(config, range(2)) for name, config in _named(replicate, shard)}
    final = {
        f"{first} to {second}": train(config, range(2, 4), halfway[first])
        for first in halfway
        for second, config in _named(replicate, shard)
    }
    return {"start": train(replicate, range(0)), **halfway, **final}


def _named(replicate: TrainConfig, shard: TrainConfig) -> list[tuple[str, TrainConfig]]:
    return [("replicate", replicate), ("shard", shard)]


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_sharded_and_replicated_trainings_are_one_and_continue_each_other(
    run: Path, tmp_path: Path
) -> None:
    states, _ = run_on_ranks(train_in_turns, 2, tmp_path, str(run))
    start = flat(states.pop("start"))
    expected = {2: flat(states["replicate"]), 4: flat(states["replicate to replicate"])}
    for name, state in states.items():
        values = flat(state)
        other = expected[state["step"]]
        assert values.keys() == other.keys()
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                assert type(value) is torch.Tensor, f"{name}: {key} is whole"
                change = (other[key] - start.get(key, 0.0)).abs().max()
                difference = (value - other[key]).abs().max()
                assert difference <= 1e-3 * change + 1e-10, f"{name}: {key}"
    moved = [key for key in start if key.startswith("student.") and key.endswith(".weight")]
    assert all((expected[4][key] - start[key]).abs().max() > 1e-4 for key in moved)


def accuracies(run: str) -> dict[str, list[float]]:
    """Accuracies before and between the steps of a training, replicated and sharded."""
    results: dict[str, list[float]] = {}
    for sharding in ("replicate", "shard"):
        config = tiny_config(run, execution={"sharding": sharding})
        knn = OnlineKNN(f"folder:{run}/colours", 40, config.model, torch.device("cpu"))
        training = Training(config, torch.device("cpu"))
        stream = batches(
            open_samples(config),
            config.loader,
            first_step=0,
            last_step=3,
            captions_per_batch=config.captions_per_batch,
            rank=distributed.rank(),
            ranks=distributed.world_size(),
        )
        # Before the first step, and between steps.
        found = [knn.accuracy(network) for network in (training.network, training.student)]
        for batch in stream:
            training.update(batch)
            found.append(knn.accuracy(training.network))
        assert training.values()["loss"] > 0
        results[sharding] = found
    return results


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_online_knn_works_between_steps_on_sharded_networks(run: Path, tmp_path: Path) -> None:
    save_pictures(run / "colours", {"train": 10, "test": 8})
    for results in run_on_ranks(accuracies, 2, tmp_path, str(run)):
        assert len(results["shard"]) == 5
        assert results["shard"] == results["replicate"]


@pytest.mark.gpu
def test_a_step_waits_for_no_device(run: Path) -> None:
    config = tiny_config(run, device="cuda", precision="bf16")
    training = Training(config, torch.device("cuda", 0))
    stream = batches(
        open_samples(config),
        config.loader,
        first_step=0,
        last_step=4,
        captions_per_batch=config.captions_per_batch,
    )
    training.update(next(stream))  # The first step may initialise buffers.
    try:
        torch.cuda.set_sync_debug_mode("error")
        for batch in stream:
            training.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert training.values()["loss"] > 0


def test_a_step_reads_nothing_back_from_the_device_and_recomputing_saves_memory(run: Path) -> None:
    """With fake tensors, which have no content; see `test_a_step_waits_for_no_device` for a GPU."""
    nothing, elementwise, blocks = (
        peak_gib(tiny_config(run, execution={"recompute": recompute}))
        for recompute in ("nothing", "elementwise", "blocks")
    )
    assert nothing > elementwise > blocks > 0


@pytest.mark.parametrize(("device", "fused"), [("cpu", False), ("meta", True)])
def test_attention_is_torchs_fused_one_but_on_a_cpu(device: str, fused: bool) -> None:
    student: Any = exact_networks(tiny_config("unused"))[0]
    prepare(student, None, ExecutionConfig(), torch.device(device), "fp32")
    assert {block.attn.fused_attn for block in student.encoder.blocks} == {fused}
