"""Checkpoints: whole or absent, the newest whole one is found, encoders come out of them."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.gradients import tiny_config
from trainer import checkpoint
from trainer.checkpoint import CheckpointConfig, CheckpointWriter
from trainer.training import Training
from transforms.core import storage
from transforms.core.config import ConfigError


def tiny_state(step: int = 0, **changes: Any) -> dict[str, Any]:
    training = Training(tiny_config("unused", **changes), torch.device("cpu"))
    training.step = step
    return training.state()


def test_saved_is_loaded_and_old_ones_go(any_storage: str) -> None:
    for step in (1, 2, 10):
        checkpoint.save(
            {"step": step, "weights": torch.full((2,), step)}, any_storage, CheckpointConfig(keep=2)
        )
    found = checkpoint.list_steps(any_storage)
    assert list(found) == [2, 10]
    state = checkpoint.load_newest(any_storage)
    assert state is not None
    assert state["step"] == 10
    assert state["weights"].tolist() == [10, 10]


def test_checkpoints_at_multiples_stay_for_good(tmp_path: Path) -> None:
    config = CheckpointConfig(keep=1, keep_every_steps=10)
    for step in (5, 10, 15, 20, 25, 26):
        checkpoint.save({"step": step}, str(tmp_path), config)
    assert list(checkpoint.list_steps(str(tmp_path))) == [10, 20, 26]


def test_one_is_due_by_time_or_by_step() -> None:
    config = CheckpointConfig(every_s=60, every_steps=4)
    assert [step for step in range(1, 10) if config.is_due(step, 1.0)] == [4, 8]
    assert config.is_due(3, 60.0)
    assert not CheckpointConfig(every_s=60).is_due(4, 59.0)
    assert CheckpointConfig(every_s=60, keep_every_steps=7).is_due(7, 0.0), "else none would stay"


def test_the_writer_copies_at_once_and_writes_beside_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, save = threading.Event(), checkpoint.save

    def slow(*arguments: Any) -> str:
        assert may_write.wait(30)
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", slow)
    weights = torch.ones(3)
    with CheckpointWriter(str(tmp_path), CheckpointConfig()) as writer:
        assert writer.wait() == ""
        writer.save({"step": 1, "parts": [{"weights": weights}]})
        weights.fill_(7.0)
        assert checkpoint.list_steps(str(tmp_path)) == {}, "the training goes on meanwhile"
        may_write.set()
        url = writer.wait()
    assert checkpoint.load(url)["parts"][0]["weights"].tolist() == [1.0, 1.0, 1.0]


def test_what_goes_wrong_in_the_writer_is_said_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with CheckpointWriter(str(tmp_path / "file"), CheckpointConfig()) as writer:
        writer.save({"step": 1})
        with pytest.raises(storage.StorageError, match="cannot write"):
            writer.save({"step": 2})


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoint.load_newest(str(tmp_path)) is None
    (tmp_path / "step-1.pt").write_bytes(b"not one of ours: the number has another width")
    assert checkpoint.load_newest(str(tmp_path)) is None


def test_the_one_before_is_taken_when_the_newest_is_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        url = checkpoint.save({"step": step}, str(tmp_path), CheckpointConfig(keep=3))
    content = Path(url).read_bytes()
    Path(url).write_bytes(content[: len(content) // 2])
    state = checkpoint.load_newest(str(tmp_path))
    assert state is not None
    assert state["step"] == 1
    checkpoint.save({"step": 1}, str(tmp_path), CheckpointConfig(keep=3))
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="damaged"):
        checkpoint.load_newest(str(tmp_path))


def test_after_a_damaged_one_the_next_stays_though_its_number_is_lower(tmp_path: Path) -> None:
    folder, config = str(tmp_path), CheckpointConfig(keep=1)
    for step in (5, 10):
        checkpoint.save({"step": step}, folder, CheckpointConfig(keep=2))
    (tmp_path / "step-000000010.pt").write_bytes(b"")
    checkpoint.save({"step": 7}, folder, config)
    state = checkpoint.load_newest(folder)
    assert state is not None
    assert state["step"] == 7
    checkpoint.save({"step": 12}, folder, config)
    assert list(checkpoint.list_steps(folder)) == [12]


def test_an_old_checkpoint_that_cannot_be_removed_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(url: str) -> None:
        raise storage.StorageError(None, f"cannot delete {url}: not allowed")

    monkeypatch.setattr(storage, "delete", refuse)
    for step in (1, 2):
        checkpoint.save({"step": step}, str(tmp_path), CheckpointConfig(keep=1))
    assert list(checkpoint.list_steps(str(tmp_path))) == [1, 2]
    assert "an old checkpoint stays: cannot delete" in caplog.text


class Evil:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run by a checkpoint",))


def test_a_checkpoint_with_code_in_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"format": checkpoint.FORMAT, "step": Evil()}, path)
    with pytest.raises(ConfigError, match="damaged or no checkpoint"):
        checkpoint.load(str(path))
    assert "run by" not in capsys.readouterr().out


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"model": {}}, path)
    with pytest.raises(ConfigError, match="not written by this trainer"):
        checkpoint.load(str(path))
    with pytest.raises(storage.MissingFileError, match="no such file"):
        checkpoint.load(str(tmp_path / "none.pt"))
    for missing in ("empty", "none.pt"):
        with pytest.raises(storage.MissingFileError, match=r"no checkpoint .*run .*trainer\.train"):
            checkpoint.find(str(tmp_path / missing))
    (tmp_path / "train.yaml").touch()
    with pytest.raises(ConfigError, match=r"train\.yaml is no checkpoint: expected a \.pt"):
        checkpoint.find(str(tmp_path / "train.yaml"))


def test_encoders_of_teacher_and_student(tmp_path: Path) -> None:
    state = tiny_state(3)
    for value in state["teacher"].values():
        value += 1.0
    folder = checkpoint.checkpoints_folder(str(tmp_path / "train"))
    url = checkpoint.save(state, folder)
    for path in (url, folder, str(tmp_path / "train"), str(tmp_path)):
        assert checkpoint.find(path) == url
    student, config = checkpoint.load_encoder(str(tmp_path), "student")
    teacher, _ = checkpoint.load_encoder(str(tmp_path))
    assert config == tiny_config("unused").model
    assert not teacher.training
    for name, value in student.state_dict().items():
        assert torch.equal(value, state["student"][f"encoder.{name}"])
        assert torch.equal(teacher.state_dict()[name], value + 1.0)


def test_without_a_teacher_the_student_stands_in(tmp_path: Path) -> None:
    state = tiny_state(objective={"teacher": False, "ibot_weight": 0.0})
    checkpoint.save(state, str(tmp_path))
    encoder, _ = checkpoint.load_encoder(str(tmp_path), "teacher")
    assert torch.equal(encoder.state_dict()["cls_token"], state["student"]["encoder.cls_token"])


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    state = tiny_state()
    state["config"]["model"]["width"] = 24
    checkpoint.save(state, str(tmp_path))
    with pytest.raises(ConfigError, match="does not hold the encoder"):
        checkpoint.load_encoder(str(tmp_path))
