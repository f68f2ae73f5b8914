from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from pipelines.tiny_sd.training import (
    average_gradients,
    cosine_rate,
    load_checkpoint,
    rank_and_world,
    run_processes,
    save_checkpoint,
    trapezoid_rate,
)


def write_averaged_gradient(folder: Path) -> None:
    rank, _ = rank_and_world()
    model = nn.Linear(3, 2)
    nn.init.ones_(model.weight)
    model(torch.full((1, 3), float(rank + 1))).sum().backward()
    average_gradients(model)
    torch.save([p.grad for p in model.parameters()], folder / f"{rank}.pt")


def test_processes_average_their_gradients(tmp_path: Path) -> None:
    run_processes(write_averaged_gradient, 2, tmp_path)
    for rank in range(2):
        weight, bias = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(weight, torch.full((2, 3), 1.5))
        assert torch.equal(bias, torch.ones(2))


def test_a_failing_process_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(ProcessRaisedException):
        run_processes(write_averaged_gradient, 2, tmp_path / "missing")


def test_learning_rates_rise_and_fall() -> None:
    assert cosine_rate(0, 100, 10, 1.0) == pytest.approx(0.1)
    assert cosine_rate(55, 100, 10, 1.0) == pytest.approx(0.5)
    assert cosine_rate(99, 100, 10, 1.0) < 0.001
    rates = [trapezoid_rate(s, 100, 10, 20, 2.0) for s in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[10:80] == [2.0] * 70
    assert rates[-1] == pytest.approx(0.1)


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert load_checkpoint(tmp_path / "none.pt", {"model": model}) == 0
    save_checkpoint(tmp_path / "deep" / "a.pt", {"model": model}, 7)
    assert load_checkpoint(tmp_path / "deep" / "a.pt", {"model": other}) == 7
    assert torch.equal(model.weight, other.weight)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.pt"]
