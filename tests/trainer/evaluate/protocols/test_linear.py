"""The linear probe on pictures with known answers, killed and continued, and over two ranks."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException

from tests.support.evaluation import read_scores, save_job, save_pictures
from tests.support.fault_process import kill, strike
from tests.support.ranks import run_on_ranks, start_ranks
from trainer.checkpoints.files import load_checkpoint
from trainer.evaluate.__main__ import main
from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.datasets import LabelledSet, Split, load_dataset
from trainer.evaluate.features import Extraction, encoder_subject
from trainer.evaluate.linear_heads import Head, Heads
from trainer.evaluate.models import Input
from trainer.evaluate.protocols import linear
from trainer.evaluate.protocols.base import Evaluation
from trainer.evaluate.protocols.linear import LinearConfig
from transforms.core.scores import Score

SETTINGS = LinearConfig(
    datasets=("colours",), epochs=4, batch_size=9, learning_rates=(0.5, 5.0), save_every_s=0.0
)
STEPS = 4 * (30 // 9)


class Mean(nn.Module):
    """An encoder whose features are the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward_features(self, images: Tensor) -> Tensor:
        return self.scale * images.mean(dim=(2, 3))[:, None]


def evaluation(run: Path | str, dataset: LabelledSet, batch_size: int = 4) -> Evaluation:
    extraction = Extraction("cpu", batch_size, 0)
    shape = Input(16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    subject = encoder_subject("trained", Mean(), shape, extraction, digest="means")
    config = EvaluateConfig(run=str(run), batch_size=batch_size)
    return Evaluation(config, [dataset], [subject])


def colours(root: Path) -> LabelledSet:
    counts = {"train": 10, "val": 4, "test": 8}
    return load_dataset(f"folder:{save_pictures(root / 'colours', counts)}")


def scored(job: Evaluation, settings: LinearConfig = SETTINGS) -> Score:
    (score,) = linear.PROTOCOL.scores(job, settings)
    return dataclasses.replace(score, protocol_s=None)


def state_of(run: Path) -> dict[str, Any]:
    (file,) = (run / "linear").iterdir()
    return load_checkpoint(str(file))


def test_separable_classes_are_separated(tmp_path: Path) -> None:
    dataset = colours(tmp_path)
    score = scored(evaluation(tmp_path / "run", dataset))
    assert score.value == 100
    assert score.chance == pytest.approx(100 / 3)
    assert (score.protocol, score.dataset) == ("linear", "colours")
    assert (score.num_train, score.num_test, score.unreadable) == (42, 24, [])
    assert score.interval == [100, 100]
    assert score.details[0]["validation"] == score.details[0]["test"] == 100
    assert state_of(tmp_path / "run")["step"] == STEPS


def test_shuffled_labels_are_chance(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (450, 20, 20, 3), dtype=np.uint8)
    labels = generator.permutation(np.arange(450) % 3)
    parts = (slice(0, 150), slice(150, 250), slice(250, 450))
    train, val, test = (Split(list(pictures[part]), labels[part]) for part in parts)
    dataset = LabelledSet("colours", ("a", "b", "c"), "accuracy", train, val, test, "identity")
    score = scored(evaluation(tmp_path, dataset, batch_size=50))
    assert score.value == pytest.approx(100 / 3, abs=12)  # 3.6 standard errors.


def test_micro_batches_and_workers_change_nothing_but_rounding(tmp_path: Path) -> None:
    dataset = colours(tmp_path)
    states = []
    for batch_size in (1, 100):
        run = tmp_path / str(batch_size)
        scored(evaluation(run, dataset, batch_size))
        states.append(state_of(run)["heads"])
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-4, atol=1e-5)


def killed_after(_: int, root: str, updates: int) -> None:
    strike(Heads, "update", kill, "after", updates, "")
    dataset = load_dataset(f"folder:{root}/colours")
    scored(evaluation(Path(root, "killed"), dataset))


@pytest.mark.slow
def test_killed_and_continued_is_the_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colours(tmp_path)
    (tmp_path / "colours" / "train" / "red" / "004.png").write_bytes(b"damaged")
    dataset = load_dataset(f"folder:{tmp_path}/colours")
    expected = scored(evaluation(tmp_path / "undisturbed", dataset))
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        start_ranks(killed_after, 1, str(tmp_path), 6)
    assert state_of(tmp_path / "killed")["step"] == 5
    updates, update = [], Heads.update

    def counting(heads: Heads, *arguments: Any) -> None:
        updates.append(1)
        update(heads, *arguments)

    monkeypatch.setattr(Heads, "update", counting)
    assert scored(evaluation(tmp_path / "killed", dataset)) == expected
    assert len(updates) == STEPS - 5
    assert len(expected.unreadable) == 1
    assert expected.unreadable[0].startswith("train: ")
    states = [state_of(tmp_path / run) for run in ("killed", "undisturbed")]
    for name, tensor in states[1]["heads"].items():
        assert torch.equal(states[0]["heads"][name], tensor), name

    # A complete state is not trained again; a damaged one is.
    assert scored(evaluation(tmp_path / "killed", dataset)) == expected
    assert len(updates) == STEPS - 5
    (file,) = (tmp_path / "killed" / "linear").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert scored(evaluation(tmp_path / "killed", dataset)) == expected
    assert len(updates) == 2 * STEPS - 5


def score_of(root: str) -> dict[str, Any]:
    dataset = load_dataset(f"folder:{root}/colours")
    return dataclasses.asdict(scored(evaluation(Path(root, "ranks"), dataset)))


def test_ranks_train_what_one_process_trains(tmp_path: Path) -> None:
    """A batch of 9 pictures is 5 and 4 of them; unreadable ones are anyone's."""
    colours(tmp_path)
    for number, colour in enumerate(("red", "green", "blue")):
        (tmp_path / "colours" / "train" / colour / f"00{number}.png").write_bytes(b"")
    (tmp_path / "colours" / "test" / "red" / "003.png").write_bytes(b"")
    expected = scored(evaluation(tmp_path / "alone", load_dataset(f"folder:{tmp_path}/colours")))
    assert (len(expected.unreadable), expected.num_test) == (4, 23)
    (tmp_path / "out").mkdir()
    ranks = run_on_ranks(score_of, 2, tmp_path / "out", str(tmp_path))
    assert ranks == [dataclasses.asdict(expected)] * 2
    states = [state_of(tmp_path / run)["heads"] for run in ("ranks", "alone")]
    for name, tensor in states[1].items():
        torch.testing.assert_close(states[0][name], tensor, rtol=1e-4, atol=1e-5)


class Predictions:
    """A probe of four heads whose predictions are known."""

    seconds = 2.0
    settings = LinearConfig(learning_rates=(0.1, 0.3))
    heads = SimpleNamespace(heads=[Head(r, normed) for normed in (False, True) for r in (1, 3)])

    def __init__(self, val: Sequence[str], test: Sequence[str]) -> None:
        self._classes = {"val": val, "test": test}

    def predict(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        classes = np.array([[int(c) for c in row] for row in self._classes[name]])
        return classes, np.array([0, 1, 0, 1])


def test_the_head_is_chosen_on_validation_and_the_papers_choice_is_told() -> None:
    probe: Any = Predictions(
        val=["0000", "0111", "0111", "0000"], test=["0000", "1101", "0001", "0101"]
    )
    trial, _ = linear._choose(probe, "accuracy")
    assert trial.predictions.tolist() == [1, 1, 0, 1], "the first of two that are best"
    chosen = {"learning_rate": 0.3, "batchnorm": False, "validation": 75.0, "test": 75.0}
    papers = {"learning_rate": 0.3, "batchnorm": True, "validation": 50.0, "test": 100.0}
    assert trial.details == {**chosen, "best_on_test": papers}
    assert trial.seconds >= 2.0


def test_the_defaults_are_the_papers() -> None:
    config = LinearConfig()
    rates = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
    assert config.learning_rates == pytest.approx([rate * 1e-2 for rate in rates])
    assert (config.epochs, config.batch_size, config.momentum) == (90, 1024, 0.9)
    assert config.datasets == ("imagenet-1k",)


def test_the_command_scores_the_data_sets_that_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = save_pictures(tmp_path / "colours", {"train": 10, "test": 4})
    settings = {"datasets": ["colours"], "epochs": 2, "batch_size": 12, "num_untrained": 1}
    run, path = save_job(tmp_path, [f"folder:{pictures}"], linear=settings)
    assert main(["linear", str(path)]) == 0
    assert [(s["protocol"], s["encoder"], len(s["values"])) for s in read_scores(run)] == [
        ("linear", "trained", 1),
        ("linear", "untrained", 1),
    ]
    assert len(list((run / "linear").iterdir())) == 2
    before = (run / "scores" / "linear-colours.json").read_bytes()
    assert main(["linear", str(path), "linear.save_every_s=1"]) == 0
    assert (run / "scores" / "linear-colours.json").read_bytes() == before
    assert main(["linear", str(path), "linear.epochs=1"]) == 0
    assert (run / "scores" / "linear-colours.json").read_bytes() != before
    capsys.readouterr()
    assert main(["linear", str(path), "linear.datasets=[pets,cars]"]) == 1
    assert (
        "linear scores none of the data sets colours: it takes those that linear.datasets names, "
        "[pets, cars]"
    ) in capsys.readouterr().err
