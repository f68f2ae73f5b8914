"""Checkpoints are whole or absent; the newest whole one is found; encoders are loaded from them."""

import errno
import zipfile
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tests.support.checkpoints import tiny_state
from tests.support.gradients import tiny_config
from trainer.checkpoints.files import (
    FORMAT,
    CheckpointConfig,
    checkpoints_folder,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_encoder,
    newest_checkpoint,
    save_checkpoint,
    write_state,
)
from trainer.models.vit import EncoderConfig
from transforms.core import storage
from transforms.core.errors import ConfigError, MissingFileError, StorageError


def newest_step(folder: str) -> int | None:
    with newest_checkpoint(folder) as found:
        return found.state["step"] if found else None


def url_of(path: str) -> str:
    with find_checkpoint(path) as found:
        return found.url


def encoder_of(
    path: str, which: Literal["teacher", "student"] = "teacher"
) -> tuple[torch.nn.Module, EncoderConfig]:
    with find_checkpoint(path) as found:
        return load_encoder(found, which)


def test_saved_is_loaded_and_old_ones_go(any_storage: str) -> None:
    for step in (1, 2, 10):
        save_checkpoint(
            {"step": step, "weights": torch.full((2,), step)}, any_storage, CheckpointConfig(keep=2)
        )
    found = list_checkpoints(any_storage)
    assert list(found) == [2, 10]
    with newest_checkpoint(any_storage) as newest:
        assert newest is not None
        assert (newest.url, newest.state["step"]) == (found[10], 10)
        assert newest.state["weights"].tolist() == [10, 10]
    assert load_checkpoint(found[2])["weights"].tolist() == [2, 2]


def test_checkpoints_at_multiples_stay_for_good(tmp_path: Path) -> None:
    config = CheckpointConfig(keep=1, keep_every_steps=10)
    for step in (5, 10, 15, 20, 25, 26):
        save_checkpoint({"step": step}, str(tmp_path), config)
    assert list(list_checkpoints(str(tmp_path))) == [10, 20, 26]


def test_one_is_due_by_time_or_by_step() -> None:
    config = CheckpointConfig(every_s=60, every_steps=4)
    assert [step for step in range(1, 10) if config.is_due(step, 1.0)] == [4, 8]
    assert config.is_due(3, 60.0)
    assert not CheckpointConfig(every_s=60).is_due(4, 59.0)
    assert CheckpointConfig(every_s=60, keep_every_steps=7).is_due(7, 0.0), (
        "otherwise there would be none to keep"
    )


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert newest_step(str(tmp_path)) is None
    (tmp_path / "step-1.pt").write_bytes(b"not one of ours: the number has another width")
    assert newest_step(str(tmp_path)) is None


def test_the_one_before_is_taken_when_the_newest_is_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        url = save_checkpoint({"step": step}, str(tmp_path), CheckpointConfig(keep=3))
    content = Path(url).read_bytes()
    Path(url).write_bytes(content[: len(content) // 2])
    assert newest_step(str(tmp_path)) == 1
    save_checkpoint({"step": 1}, str(tmp_path), CheckpointConfig(keep=3))
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="damaged"):
        newest_step(str(tmp_path))


def test_the_one_before_is_not_taken_when_the_newest_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be whole: continuing from an older one would lose work."""
    open_zip = zipfile.ZipFile

    def fail(path: str) -> zipfile.ZipFile:
        if path == url:
            raise OSError(errno.EIO, "Input/output error", path)
        return open_zip(path)

    for step in (1, 2):
        url = save_checkpoint({"step": step}, str(tmp_path))
    monkeypatch.setattr(zipfile, "ZipFile", fail)
    with pytest.raises(StorageError, match=r"cannot read .*2\.pt: Input/output error"):
        newest_step(str(tmp_path))


def test_a_flipped_bit_anywhere_is_damage_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    weights = torch.arange(64.0)
    write_state({"step": 3, "weights": weights}, str(path))
    content = bytearray(path.read_bytes())
    start = content.index(weights.numpy().tobytes())
    in_weights, elsewhere = range(start, start + 256, 7), range(0, len(content), 3)
    refused = set()
    for place in (*in_weights, *elsewhere):
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            state = load_checkpoint(str(path))
            assert state["step"] == 3
            assert torch.equal(state["weights"], weights)
        except ConfigError as error:
            assert "damaged" in str(error)
            refused.add(place)
        content[place] ^= 1 << place % 8
    assert refused >= set(in_weights)


def test_the_newest_checkpoint_of_a_run_is_a_whole_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As export and evaluation do."""
    folder = checkpoints_folder(str(tmp_path / "train"))
    old, new = (save_checkpoint(tiny_state(step), folder) for step in (1, 2))
    content = bytearray(Path(new).read_bytes())
    token = load_checkpoint(new)["teacher"]["encoder.cls_token"].numpy().tobytes()
    content[content.index(token)] ^= 1
    Path(new).write_bytes(content)
    for path in (str(tmp_path), folder):
        assert url_of(path) == old
        encoder_of(path)
    assert "step-000000002.pt is damaged" in caplog.text
    with pytest.raises(ConfigError, match="damaged"):
        encoder_of(new)


def test_after_a_damaged_one_the_next_stays_though_its_number_is_lower(tmp_path: Path) -> None:
    folder, config = str(tmp_path), CheckpointConfig(keep=1)
    for step in (5, 10):
        save_checkpoint({"step": step}, folder, CheckpointConfig(keep=2))
    (tmp_path / "step-000000010.pt").write_bytes(b"")
    save_checkpoint({"step": 7}, folder, config)
    assert newest_step(folder) == 7
    save_checkpoint({"step": 12}, folder, config)
    assert list(list_checkpoints(folder)) == [12]


def test_an_old_checkpoint_that_cannot_be_removed_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(url: str) -> None:
        raise StorageError(None, f"cannot delete {url}: not allowed")

    monkeypatch.setattr(storage, "delete", refuse)
    for step in (1, 2):
        save_checkpoint({"step": step}, str(tmp_path), CheckpointConfig(keep=1))
    assert list(list_checkpoints(str(tmp_path))) == [1, 2]
    assert "an old checkpoint is left: cannot delete" in caplog.text


class Evil:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run by a checkpoint",))


def test_a_checkpoint_with_code_in_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"format": FORMAT, "step": Evil()}, path)
    with pytest.raises(ConfigError, match="damaged or no checkpoint"):
        load_checkpoint(str(path))
    assert "run by" not in capsys.readouterr().out


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"model": {}}, path)
    with pytest.raises(ConfigError, match="not written by this trainer"):
        load_checkpoint(str(path))
    with pytest.raises(MissingFileError, match="no such file"):
        load_checkpoint(str(tmp_path / "none.pt"))
    for missing in ("empty", "none.pt"):
        with pytest.raises(MissingFileError, match=r"no checkpoint .*run .*trainer\.train"):
            url_of(str(tmp_path / missing))
    (tmp_path / "train.yaml").touch()
    with pytest.raises(ConfigError, match=r"train\.yaml is no checkpoint: expected a \.pt"):
        url_of(str(tmp_path / "train.yaml"))


def test_encoders_of_teacher_and_student(tmp_path: Path) -> None:
    state = tiny_state(3)
    for value in state["teacher"].values():
        value += 1.0
    folder = checkpoints_folder(str(tmp_path / "train"))
    url = save_checkpoint(state, folder)
    for path in (url, folder, str(tmp_path / "train"), str(tmp_path)):
        assert url_of(path) == url
    student, config = encoder_of(str(tmp_path), "student")
    teacher, _ = encoder_of(str(tmp_path))
    assert config == tiny_config("unused").model
    assert not teacher.training
    for name, value in student.state_dict().items():
        assert torch.equal(value, state["student"][f"encoder.{name}"])
        assert torch.equal(teacher.state_dict()[name], value + 1.0)


def test_without_a_teacher_the_student_is_loaded(tmp_path: Path) -> None:
    state = tiny_state(objective={"teacher": False, "ibot_weight": 0.0})
    save_checkpoint(state, str(tmp_path))
    encoder, _ = encoder_of(str(tmp_path), "teacher")
    assert torch.equal(encoder.state_dict()["cls_token"], state["student"]["encoder.cls_token"])


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    state = tiny_state()
    state["config"]["model"]["width"] = 24
    save_checkpoint(state, str(tmp_path))
    with pytest.raises(ConfigError, match="does not hold the encoder"):
        encoder_of(str(tmp_path))
