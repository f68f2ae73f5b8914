"""A step that is not finite: it changes nothing, and leaves what is needed to examine it."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tests.support.gradients import step_batch, tiny_config
from tests.support.image_shards import write_images
from tests.support.training_runs import command, flat, losses, make_run
from trainer import replay
from trainer.checkpoints.files import list_checkpoints, load_checkpoint, write_state
from trainer.config import TrainConfig
from trainer.data.batch import hex_ids
from trainer.data.photometric import augment
from trainer.data.shard_reader import ShardReader
from trainer.training import nonfinite
from trainer.training.errors import NotFiniteError
from trainer.training.step import Training
from transforms.core import storage
from transforms.core.config import load_config
from transforms.core.errors import ConfigError, StorageError
from transforms.core.exit_codes import NOT_FINITE, UNFINISHED

BAD_STEP = 2


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make the images of a step NaN; return the state before that step, once it was reached."""
    update = Training.update
    state: dict[str, Any] = {}
    broken = [False]

    def watched(self: Training, batch: Any) -> None:
        broken[0] = self.step == BAD_STEP
        if broken[0]:
            state.update(
                {
                    k: torch.clone(v) if torch.is_tensor(v) else v
                    for k, v in flat(self.state()).items()
                }
            )
        update(self, batch)

    def augmented(*arguments: Any, **settings: Any) -> torch.Tensor:
        return augment(*arguments, **settings) * (torch.nan if broken[0] else 1.0)

    monkeypatch.setattr(Training, "update", watched)
    monkeypatch.setattr("trainer.objectives.base.augment", augmented)
    return state


def replay_file(run: Path) -> Path:
    return run / "train" / f"replay-step-{BAD_STEP:09d}.pt"


@pytest.mark.parametrize("log_every", [1, 5])
def test_it_is_found_before_the_next_line_or_checkpoint_and_nothing_is_lost(
    run: Path, before: dict[str, Any], capsys: pytest.CaptureFixture[str], log_every: int
) -> None:
    overrides = ["steps=6", f"log_every={log_every}", "checkpoint.every_steps=4"]
    assert command(run, *overrides) == NOT_FINITE
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"the loss or a gradient at step {BAD_STEP} is not finite" in said
    assert "data positions 8 to 11" in said
    assert f"python -m trainer.replay {replay_file(run)}`; continue with" in said
    assert f"'skip_steps=[[{BAD_STEP},{BAD_STEP}]]'" in said
    assert [step for step, _ in losses(run)] == ([0, 1] if log_every == 1 else [0])
    assert list_checkpoints(str(run / "train" / "checkpoints")) == {}

    kept = load_checkpoint(str(replay_file(run)))
    assert len(kept["caption_ids"]) == 4
    assert f"captions {', '.join(kept['caption_ids'][:3])} and 1 more" in said
    assert (kept["step"], kept["position"]) == (BAD_STEP, 8)
    reader = ShardReader(str(run / "images" / "index.parquet"))
    assert set(kept["caption_ids"]) <= {sample.caption_id for sample in reader}
    for name, value in flat(kept).items():
        if torch.is_tensor(value) and "running_" not in name:
            assert torch.equal(value, before[name]), name


def test_the_same_again_is_refused_at_once_until_something_is_changed(
    run: Path, before: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["steps=6", "checkpoint.every_steps=1"]
    assert command(run, *settings) == NOT_FINITE
    said = capsys.readouterr().err.splitlines()[-1]
    before.clear()
    assert command(run, *settings) == NOT_FINITE
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert command(run, *settings, "log_every=1", "checkpoint.keep=9") == NOT_FINITE
    assert not before, "the step is not reached"
    assert command(run, *settings, "accumulation=2") == NOT_FINITE
    assert before.pop("step") == BAD_STEP, "other rounding is worth a try"
    before.clear()
    assert command(run, *settings, "optim.clip_norm=1") == NOT_FINITE
    assert before
    note = run / "train" / nonfinite.NOTE
    assert note.exists(), "checkpoints of the steps before do not delete it"
    assert command(run, *settings, f"skip_steps=[[{BAD_STEP},{BAD_STEP}]]") == 0
    assert not note.exists()
    assert replay_file(run).exists()
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "loss" in row] == [0, 1, 3, 4, 5]


def test_a_note_counts_until_it_is_left_behind_or_deleted(
    run: Path,
    before: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(run, "steps=6") == NOT_FINITE
    config, folder = load_config(TrainConfig, str(run / "train.yaml"), ["steps=6"]), run / "train"
    with pytest.raises(NotFiniteError, match=f"at step {BAD_STEP} is not finite"):
        nonfinite.refuse_to_repeat(config, str(folder), BAD_STEP)
    nonfinite.refuse_to_repeat(config, str(folder), BAD_STEP + 1)
    (folder / nonfinite.NOTE).write_bytes(b'{"step"')
    capsys.readouterr()
    assert command(run, "steps=6") == UNFINISHED
    assert "not-finite.json (delete it to train on) is damaged: " in capsys.readouterr().err
    (folder / nonfinite.NOTE).unlink()
    monkeypatch.undo()
    assert command(run, "steps=6") == 0


def test_a_note_that_is_left_does_not_end_the_training(
    run: Path,
    before: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert command(run, "steps=6") == NOT_FINITE
    note = run / "train" / nonfinite.NOTE
    nonfinite.forget(str(note.parent), BAD_STEP)
    assert note.exists(), "the step is still ahead"
    fails = Mock(side_effect=StorageError(13, "cannot delete it: permission denied"))
    monkeypatch.setattr(storage, "delete", fails)
    nonfinite.forget(str(note.parent), BAD_STEP + 1)
    assert note.exists()
    assert "is left: " in caplog.text
    assert "permission denied" in caplog.text


def test_the_step_can_be_looked_into(
    run: Path,
    before: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert command(run, "steps=6") == NOT_FINITE
    capsys.readouterr()
    monkeypatch.setattr(
        "trainer.objectives.base.augment", lambda *a, **s: augment(*a, **s) * torch.nan
    )
    assert replay.main([str(replay_file(run))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "loss term loss: nan" in lines
    outputs, gradients = (line for line in lines if line.startswith("not finite: "))
    first = "not finite: the output of teacher encoder.patch_embed.proj, "
    assert re.fullmatch(rf"{re.escape(first)}[^,]*, [^,]* and \d+ more", outputs)
    assert re.fullmatch(r"not finite: the gradient of mask_token, .* and \d+ more", gradients)
    assert not any("before this step" in line for line in lines)

    monkeypatch.undo()
    assert replay.main([str(replay_file(run))]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "this time everything is finite"


@pytest.mark.parametrize("weight", [torch.nan, -2e3])
def test_weights_that_were_ruined_before_are_named_first(
    run: Path, before: dict[str, Any], capsys: pytest.CaptureFixture[str], weight: float
) -> None:
    assert command(run, "steps=6") == NOT_FINITE
    state = load_checkpoint(str(replay_file(run)))
    state["student"]["encoder.cls_token"].flatten()[0] = weight
    write_state(state, str(replay_file(run)))
    assert replay.main([str(replay_file(run))]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = "before this step (student encoder.cls_token): the cause is in an earlier step"
    assert lines[1].endswith(expected)


def test_after_weights_were_ruined_the_way_on_is_back(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Skipping the step would only lead to the next one that is not finite."""
    assert command(run, "optim.learning_rate=1e38") == NOT_FINITE
    said = capsys.readouterr().err.splitlines()[-1]
    assert "because weights were ruined in an earlier step (student mask_token, " in said
    assert "delete the newest checkpoints, and set optim.clip_norm, a lower" in said
    assert "skip_steps" not in said


def test_a_rank_has_some_of_the_captions_that_the_file_names(run: Path) -> None:
    batch = step_batch(tiny_config(run), 0)
    names = hex_ids(batch.caption_ids)
    mine = dataclasses.replace(batch, caption_ids=batch.caption_ids[:2])
    replay._check_captions(mine, names)
    with pytest.raises(ConfigError, match=f"other captions .*first: {min(names[:2])}"):
        replay._check_captions(mine, names[2:])


def test_files_and_data_that_do_not_fit_are_named(
    run: Path, before: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(run, "steps=6") == NOT_FINITE
    write_images(tmp_path / "other", (40,))
    assert replay.main([str(replay_file(run)), f"data.images={tmp_path}/other"]) == 2
    assert "have other captions at this step" in capsys.readouterr().err
    assert replay.main([str(replay_file(run)), "model.width=24"]) == 2
    assert "another architecture" in capsys.readouterr().err
    assert replay.main([str(replay_file(run)), "accumulation=3"]) == 2
    assert "captions_per_batch is 4: expected a multiple of 3" in capsys.readouterr().err
    assert replay.main([str(run)]) == 2
    assert "expected a replay file, replay-step-*.pt" in capsys.readouterr().err
    assert replay.main([str(run / "nothing.pt")]) == 1
    assert "no such file" in capsys.readouterr().err
