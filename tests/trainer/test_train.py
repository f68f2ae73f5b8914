"""The train command finishes, refuses what does not fit, and reports it in one sentence."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.evaluation import save_pictures
from tests.support.gradients import tiny_config
from tests.support.image_shards import write_images
from tests.support.run_yaml import write_run_yaml
from tests.support.training_runs import (
    checkpoints,
    command,
    final_state,
    flat,
    losses,
    make_run,
    write_config,
)
from trainer import distributed
from trainer.checkpoints.files import list_checkpoints, load_checkpoint, write_state
from trainer.data.sampler import RankSampler
from trainer.training.session import check_ranks, open_samples
from trainer.training.step import Training
from transforms.core import storage
from transforms.core.errors import ConfigError
from transforms.core.exit_codes import UNFINISHED, WRONG_CONFIG


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_a_training_finishes_and_then_has_nothing_to_do(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(run) == 0
    assert "Trained 4 steps" in capsys.readouterr().out
    assert [step for step, _ in losses(run)] == [0, 1, 2, 3]
    state = final_state(run)
    assert (state["step"], state["position"], state["num_replaced"]) == (4, 16, 0)
    assert yaml.safe_load((run / "train" / "run.yaml").read_text())["config"]["steps"] == 4
    before = {path: path.stat().st_mtime_ns for path in (run / "train").rglob("*")}
    assert command(run) == 0
    assert "Trained already: 4 steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (run / "train").rglob("*")} == before


def test_a_damaged_last_checkpoint_is_made_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(run, "checkpoint.every_steps=2") == 0
    expected = final_state(run)
    (last,) = (run / "train").rglob("step-000000004.pt")
    last.write_bytes(last.read_bytes()[:1000])
    assert command(run, "checkpoint.every_steps=2") == 0
    assert "Trained 4 steps" in capsys.readouterr().out.splitlines()[-1]
    assert final_state(run)["student"].keys() == expected["student"].keys()
    for name, value in final_state(run)["student"].items():
        assert torch.equal(value, expected["student"][name])


def test_a_finished_checkpoint_of_another_architecture_is_no_end(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(run) == 0
    other = tmp_path / "other"
    write_config(other, data={"images": str(run / "images")})
    assert command(other, "model.width=24") == 0
    (ours,), (theirs,) = ((r / "train").rglob("step-000000004.pt") for r in (run, other))
    ours.write_bytes(theirs.read_bytes())
    assert command(run) == WRONG_CONFIG
    assert "step 4 is of another architecture" in last_line(capsys)


def test_it_learns(run: Path) -> None:
    overrides = ["steps=60", "optim.warmup=5", "photometric.jitter=0", "photometric.grey=0"]
    assert command(run, *overrides) == 0
    values = [loss for _, loss in losses(run)]
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.learning_rat=1", "did you mean 'optim.learning_rate'"),
        ("captions_per_batch=0", "'captions_per_batch' has value 0: expected more than 0"),
        ("optim.warmup=9", "optim.warmup 9 is more than steps 4"),
        ("crops.local_size=9", "not a multiple of model.patch_size 8"),
        ("accumulation=3", "expected a multiple of 3"),
        ("captions_per_batch=13", "images holds 12 captions: expected at most that many"),
        ("data.num_captions=0", "'data.num_captions' has value 0: expected more than 0"),
        ("data.num_captions=13", "images holds 12 captions: expected at most that many"),
        ("data.num_captions=3", "captions_per_batch is 4, but data.num_captions is 3: expected"),
        ("data=nowhere", "key 'data' is now 'data.images'"),
        ("skip_steps=2", "'skip_steps' has value 2: expected ranges [[first,last],...]"),
        (
            "data.images=nowhere",
            "nowhere (key data.images, or run) holds no stage: expected",
        ),
        ("images_per_caption=4", "hold 2 images per caption"),
        ("objective.teacher=false", "'objective': iBOT needs a teacher: without one, set obj"),
        ("monitor={knn_every: 2, knn_dataset: pictures}", "unknown data set 'pictures'"),
    ],
)
def test_wrong_settings_are_one_sentence_and_exit_2(
    run: Path, override: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(run, override) == 2
    assert sentence in last_line(capsys)
    assert not (run / "train").exists(), "the folder is still free for other settings"


def test_a_batch_is_shared_out_over_ranks_and_their_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    check_ranks(tiny_config("unused", accumulation=2))
    with pytest.raises(ConfigError, match="multiple of 8, which is 2 ranks times accumulation 4"):
        check_ranks(tiny_config("unused", accumulation=4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_accelerator_is_an_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(run, "device=cuda") == 2
    assert "no usable CUDA device" in last_line(capsys)


def test_more_ranks_than_gpus_are_an_error_that_the_rank_itself_says(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("RANK", "10")
    assert command(run, "device=auto") == 2
    assert "this machine has 2: expected --nproc-per-node=2 or less" in last_line(capsys)


def test_half_of_a_launchers_environment_is_an_error(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command(run) == 2
    assert "environment variable RANK expected, but not set: start them" in last_line(capsys)


def test_data_that_is_not_there_is_exit_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "images" / "shards" / "000" / "images-000001.tar").unlink()
    assert command(run) == 1
    assert "images-000001.tar is gone" in last_line(capsys)


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistBackendError("NCCL error\nremote process exited"),
        RuntimeError("[/a/gloo/transport/tcp/pair.cc:1] remote process exited"),
    ],
)
def test_collectives_inside_torch_that_fail_are_a_sentence(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    """For instance in the backward pass."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Training, "update", fail)
    assert command(run) == UNFINISHED, "no checkpoint was saved"
    said = last_line(capsys)
    assert "rank 0 lost the others (" in said and "remote process exited); the launcher" in said
    assert "; this start saved no checkpoint; " in said
    assert said.endswith("once that is fixed, run the same command to continue.")
    assert "gloo" not in said


def test_a_mistake_of_ours_is_no_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Training, "update", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        command(run)


def test_other_settings_and_other_data_are_refused_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(run) == 0
    assert command(run, "model.width=24", "seed=9") == 2
    said = last_line(capsys)
    assert "model.width: 12 there, 24 here; seed: 3 there, 9 here" in said
    write_images(tmp_path / "more", (3, 5, 5))
    assert command(run, f"data.images={tmp_path}/more") == 2
    assert "data: " in last_line(capsys)
    assert command(run, "loader.num_workers=1", "accumulation=2", "log_every=3") == 0


@pytest.mark.parametrize("is_in", ["checkpoint", "run.yaml"])
def test_other_library_versions_are_named_or_refused_while_steps_are_left(
    is_in: str, run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert command(run, "checkpoint.every_steps=2", "strict_versions=true") == 0
    older = {"torch": "1.13.1", "vllm": "0.1.0"}
    first, last = sorted((run / "train").rglob("step-*.pt"))
    state = load_checkpoint(str(first))
    assert state.pop("versions")["torch"] == torch.__version__.partition("+")[0]
    if is_in == "checkpoint":
        write_state({**state, "versions": older}, str(first))
    else:  # Checkpoints of earlier versions do not say.
        write_state(state, str(first))
        recorded = yaml.safe_load((run / "train" / "run.yaml").read_text())
        write_run_yaml({**recorded, "versions": older}, f"{run}/train/run.yaml")
    assert command(run, "strict_versions=true") == 0, "it is finished"
    last.unlink()
    assert command(run, "strict_versions=true") == WRONG_CONFIG
    said = last_line(capsys)
    assert f"{first} was written with other library versions (torch 1.13.1 there, " in said
    assert "strict_versions=false" in said
    assert not last.exists()
    caplog.clear()
    assert command(run) == 0
    (warning,) = [line for line in caplog.messages if "library versions" in line]
    assert "(torch 1.13.1 there, " in warning
    assert "vllm" not in warning


def test_the_first_captions_are_trained_on_as_if_there_were_no_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = ["data.num_captions=7", "steps=6", "checkpoint.every_steps=2", "checkpoint.keep=9"]
    assert command(run, *part) == 0
    alone = tmp_path / "alone"
    write_images(alone / "images", (3, 4))
    write_config(alone)
    assert command(alone, *part[1:]) == 0
    ours, theirs = (flat(final_state(r, 6)["student"]) for r in (run, alone))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert losses(run) == losses(alone)
    for step in (4, 6):
        Path(list_checkpoints(checkpoints(run))[step]).unlink()
    assert command(run, *part) == 0
    resumed = flat(final_state(run, 6)["student"])
    assert all(torch.equal(value, ours[name]) for name, value in resumed.items())
    assert command(run, *part[1:]) == 2
    assert "data.num_captions: 7 there, nothing here" in last_line(capsys)


def test_steps_that_are_skipped_change_nothing_but_the_position(run: Path) -> None:
    keep = ["checkpoint.every_steps=1", "checkpoint.keep=9"]
    assert command(run, "skip_steps=[[0,1],[3,9]]", *keep) == 0
    states = [flat(final_state(run, step)) for step in (1, 2, 3, 4)]
    moved = [
        any(torch.is_tensor(value) and not torch.equal(value, after[name]) for name, value in items)
        for items, after in ((b.items(), a) for b, a in itertools.pairwise(states))
    ]
    assert moved == [False, True, False]
    assert [state["position"] for state in states] == [4, 8, 12, 16]
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").open()]
    assert ["loss" in row for row in rows] == [False, False, True, False]


def test_undecodable_samples_are_counted_and_the_training_goes_on(tmp_path: Path) -> None:
    write_images(tmp_path / "images", broken=(0, 5))
    write_config(tmp_path)
    assert command(tmp_path) == 0
    assert final_state(tmp_path)["num_replaced"] >= 2


def test_a_run_on_a_gcs_bucket_is_trained_where_it_stands(gcs_bucket: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    for name in storage.list_files(folder.url):
        storage.publish_file(f"{folder.url}/{name}", f"{gcs_bucket}/run/images/{name}")
    write_config(tmp_path)
    overrides = [f"run={gcs_bucket}/run", f"loader.cache_folder={tmp_path}/cache"]
    assert command(tmp_path, *overrides) == 0
    files = storage.list_files(f"{gcs_bucket}/run/train")
    expected = {"metrics.jsonl", "run.yaml", "settings.yaml", "checkpoints/step-000000004.pt"}
    assert expected == set(files)
    assert storage.read_bytes(f"{gcs_bucket}/run/train/metrics.jsonl").count(b"\n") == 4
    assert command(tmp_path, *overrides) == 0


def test_online_knn_is_in_the_log(run: Path, tmp_path: Path) -> None:
    pictures = save_pictures(tmp_path / "colours", {"train": 10, "test": 8})
    watch = ["monitor.knn_every=2", f"monitor.knn_dataset=folder:{pictures}", "log_every=3"]
    assert command(run, "steps=5", *watch) == 0
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").open()]
    assert {row["step"]: "knn" in row for row in rows} == {0: False, 1: True, 3: True, 4: True}
    assert all(0 <= row["knn"] <= 100 for row in rows if "knn" in row)
    other = make_run(tmp_path / "other")
    assert command(other, "steps=5") == 0
    ours, theirs = (final_state(folder, 5)["student"] for folder in (run, other))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), "online kNN does not change the training"


def test_data_are_read_as_the_config_says(run: Path) -> None:
    changes: dict[str, Any] = {"loader": {"cache_gib": 2}, "objective": {"masked_patches": 0.25}}
    one, other = (open_samples(tiny_config(run, seed=seed, **changes)) for seed in (3, 4))
    assert one.reader.cache_bytes == 2 << 30
    crops = one.batch(RankSampler(one.sampler, captions_per_batch=4)(0)).crops
    assert crops.patch_masks.sum(dim=1).tolist() == [1] * 8, "one of four patches"
    assert one.sampler(range(12)).tolist() != other.sampler(range(12)).tolist()


@pytest.mark.gpu
def test_a_gpu_trains_as_a_cpu_does(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    exact = ["model.drop_path=0", "steps=8", "optim.warmup=2"]
    assert command(run, "device=cuda", *exact) == 0
    assert command(other, "device=cpu", *exact) == 0
    ours, theirs = losses(run), losses(other)
    assert [loss for _, loss in ours[:3]] == pytest.approx([loss for _, loss in theirs[:3]], 1e-2)
