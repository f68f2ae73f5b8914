"""Checkpoints: whole or absent, the newest whole one is found, encoders come out of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.gradients import tiny_config
from trainer import checkpoint
from trainer.training import Training
from transforms.core import storage
from transforms.core.config import ConfigError


def tiny_state(step: int = 0, **changes: Any) -> dict[str, Any]:
    training = Training(tiny_config("unused", **changes), torch.device("cpu"))
    training.step = step
    return training.state()


def test_saved_is_loaded_and_old_ones_go(any_storage: str) -> None:
    for step in (1, 2, 10):
        checkpoint.save({"step": step, "weights": torch.full((2,), step)}, any_storage, keep=2)
    found = checkpoint.list_steps(any_storage)
    assert list(found) == ([2, 10] if storage.is_local(any_storage) else [1, 2, 10])
    state = checkpoint.load_newest(any_storage)
    assert state is not None
    assert state["step"] == 10
    assert state["weights"].tolist() == [10, 10]


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoint.load_newest(str(tmp_path)) is None
    (tmp_path / "step-1.pt").write_bytes(b"not one of ours: the number has another width")
    assert checkpoint.load_newest(str(tmp_path)) is None


def test_the_one_before_is_taken_when_the_newest_is_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        url = checkpoint.save({"step": step}, str(tmp_path), keep=3)
    content = Path(url).read_bytes()
    Path(url).write_bytes(content[: len(content) // 2])
    state = checkpoint.load_newest(str(tmp_path))
    assert state is not None
    assert state["step"] == 1
    checkpoint.save({"step": 1}, str(tmp_path), keep=3)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="damaged"):
        checkpoint.load_newest(str(tmp_path))


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
    with pytest.raises(storage.MissingFileError, match="no checkpoint in"):
        checkpoint.find(str(tmp_path / "empty"))


def test_encoders_of_teacher_and_student(tmp_path: Path) -> None:
    state = tiny_state(3)
    for value in state["teacher"].values():
        value += 1.0
    folder = checkpoint.checkpoints_folder(str(tmp_path / "train"))
    url = checkpoint.save(state, folder, keep=1)
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
    checkpoint.save(state, str(tmp_path), keep=1)
    encoder, _ = checkpoint.load_encoder(str(tmp_path), "teacher")
    assert torch.equal(encoder.state_dict()["cls_token"], state["student"]["encoder.cls_token"])


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    state = tiny_state()
    state["config"]["model"]["width"] = 24
    checkpoint.save(state, str(tmp_path), keep=1)
    with pytest.raises(ConfigError, match="does not hold the encoder"):
        checkpoint.load_encoder(str(tmp_path))
