"""Segmentation from pictures with masks to a score: learnt, killed and continued, over ranks."""

from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from tests.support.evaluation import read_scores, save_job
from tests.support.masked_pictures import save_masked
from tests.support.ranks import run_on_ranks, start_ranks
from tests.support.segmentation_runs import (
    killed_in_step,
    score,
    score_and_weights,
    shared_work,
)
from trainer.evaluate.__main__ import main
from trainer.evaluate.segmentation.training import CHECK_EVERY, pixel_loss


def test_from_a_checkpoint_to_the_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = save_masked(tmp_path / "data", 10, 3)
    broken = data / "ADEChallengeData2016" / "images"
    (broken / "training" / "ADE_train_00000001.jpg").write_bytes(b"broken")
    (broken / "validation" / "ADE_val_00000002.jpg").write_bytes(b"broken")
    short = {"num_steps": 4, "warmup_steps": 1, "batch_size": 5, "crop_size": 30, "head": "linear"}
    run, path = save_job(
        tmp_path,
        ["ade20k", "torchvision:voc2007"],
        data=str(data),
        num_untrained=1,
        segmentation={**short, "untrained": True},
    )
    assert main(["all", str(path)]) == 0
    assert "voc2007 is absent: " in capsys.readouterr().out
    rows = read_scores(run)
    assert [(row["protocol"], row["encoder"]) for row in rows] == [
        ("segmentation", "trained"),
        ("segmentation", "untrained"),
    ], "no other protocol takes pictures with masks"
    for row in rows:
        assert (row["dataset"], row["metric"], row["num_classes"]) == ("ade20k", "mIoU", 3)
        assert (row["num_train"], row["num_test"]) == (10, 2)
        assert row["interval"][0] <= row["value"] <= row["interval"][1]
        assert sorted(Path(name).name for name in row["unreadable"]) == [
            "ADE_train_00000001.jpg",
            "ADE_val_00000002.jpg",
        ]
        # Crops of whole patches of 8.
        assert (row["details"][0]["size"], row["details"][0]["steps"]) == (32, 4)
    assert main(["all", str(path)]) == 0
    assert "Scored already:" in capsys.readouterr().out
    assert main(["all", str(path), "datasets=[ade20k]", f"data={tmp_path}"]) == 1
    assert "none of the 1 data sets is there" in capsys.readouterr().err
    assert main(["all", str(path), "segmentation.batch_size=1"]) == 2


@pytest.mark.parametrize("head", [pytest.param("upernet", marks=pytest.mark.slow), "linear"])
def test_killed_and_continued_is_as_if_undisturbed(tmp_path: Path, head: str) -> None:
    data = str(save_masked(tmp_path / "data", 8, 2))
    settings = {"head": head, "drop_path": 0.3}
    whole = score_and_weights(data, str(tmp_path / "whole"), settings)
    run = str(tmp_path / "killed")
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        start_ranks(killed_in_step, 1, data, run, settings, CHECK_EVERY + 3)
    (file,) = (tmp_path / "killed" / "segmentation").glob("*.pt")
    assert torch.load(file, weights_only=True)["step"] == CHECK_EVERY
    continued = score_and_weights(data, run, settings)
    assert continued["score"] == whole["score"]
    for name, value in whole["weights"].items():
        assert torch.equal(continued["weights"][name], value), name


def test_a_damaged_state_is_a_new_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = str(save_masked(tmp_path / "data", 8, 2))
    settings = {"head": "linear", "num_steps": 5}
    whole = score_and_weights(data, str(tmp_path / "run"), settings)
    (file,) = (tmp_path / "run" / "segmentation").glob("*.pt")
    file.write_bytes(b"broken")
    assert score_and_weights(data, str(tmp_path / "run"), settings)["score"] == whole["score"]
    assert "the segmentation starts again" in caplog.text


def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    data = str(save_masked(tmp_path / "data", 8, 3))
    settings = {"drop_path": 0, "num_steps": 3, "warmup_steps": 1}  # Drop path differs by rank.
    torch.manual_seed(0)
    maps = torch.randn(4, 3, 5, 2, dtype=torch.float64)
    one = shared_work(data, str(tmp_path / "one"), settings, maps)
    (tmp_path / "ranks").mkdir()
    folder = str(tmp_path / "two")
    two = run_on_ranks(shared_work, 2, tmp_path / "ranks", data, folder, settings, maps)
    assert two[0]["score"] == two[1]["score"]
    assert two[0]["score"] == pytest.approx(one["score"], abs=1)
    for name, gradient in one["gradients"].items():
        for rank in two:
            found = rank["gradients"][name]
            torch.testing.assert_close(found, gradient, rtol=1e-3, atol=2e-5, msg=name)
    for index in (0, 1):
        joined = torch.cat([rank["normalised"][index] for rank in two])
        torch.testing.assert_close(joined, one["normalised"][index])
    for rank in two:
        torch.testing.assert_close(rank["normalised"][2:], one["normalised"][2:])


def test_loss_is_the_mean_over_all_pixels() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    labels = torch.tensor([[[0, 255]]])
    own = -torch.log_softmax(torch.tensor([2.0, 0.0]), 0)[0]
    assert pixel_loss(logits, labels) == pytest.approx(float(own) / 2)
    assert pixel_loss(logits, torch.full((1, 1, 2), 255)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_colours_are_learnt(tmp_path: Path, head: str) -> None:
    data = save_masked(tmp_path / "data", 40, 10)
    settings = {"head": head, "num_steps": 200, "batch_size": 8, "channels": 32, "drop_path": 0}
    found = score(data, tmp_path / "run", settings)
    assert found.chance is not None and found.chance < 25
    assert found.value > 90
