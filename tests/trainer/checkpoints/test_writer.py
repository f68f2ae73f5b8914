"""Checkpoints are written in the background; files of killed writers are removed."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoints import writer as checkpoint_writer
from trainer.checkpoints.files import (
    CheckpointConfig,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from trainer.checkpoints.writer import CheckpointWriter
from transforms.core import storage
from transforms.core.errors import StorageError


def test_the_writer_copies_at_once_and_writes_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, save = threading.Event(), save_checkpoint

    def slow(*arguments: Any) -> str:
        assert may_write.wait(30)
        return save(*arguments)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", slow)
    weights = torch.ones(3)
    with CheckpointWriter(str(tmp_path), CheckpointConfig()) as writer:
        assert writer.wait() == ""
        writer.save({"step": 1, "parts": [{"weights": weights}]})
        weights.fill_(7.0)
        assert list_checkpoints(str(tmp_path)) == {}, "the training continues meanwhile"
        assert writer.is_writing()
        may_write.set()
        url = writer.wait()
        assert not writer.is_writing()
        may_write.clear()
        writer.save({"step": 2})
        threading.Timer(0.1, may_write.set).start()
    assert list(list_checkpoints(str(tmp_path))) == [1, 2], (
        "leaving the context waits for the last one"
    )
    assert load_checkpoint(url)["parts"][0]["weights"].tolist() == [1.0, 1.0, 1.0]


def test_what_goes_wrong_in_the_writer_is_said_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with CheckpointWriter(str(tmp_path / "file"), CheckpointConfig()) as writer:
        writer.save({"step": 1})
        with pytest.raises(StorageError, match="cannot write"):
            writer.save({"step": 2})


def test_parts_of_cut_off_checkpoints_go(any_storage: str) -> None:
    part = f"{any_storage}/.step-000000001.pt.0123456789ab.part"
    storage.replace_bytes(b"half", part)
    storage.replace_bytes(b"other", f"{any_storage}/other")
    with CheckpointWriter(any_storage, CheckpointConfig()) as writer:
        writer.save({"step": 2})
        writer.wait()
    assert storage.list_unfinished(any_storage) == {}
    assert set(storage.list_files(any_storage)) == {"other", "step-000000002.pt"}
