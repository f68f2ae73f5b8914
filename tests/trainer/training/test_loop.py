"""The loop: what is due after a step; no rank leaves while another writes."""

import contextlib
import io
import json
import os
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.gradients import tiny_config
from tests.support.ranks import start_ranks
from tests.support.training_runs import checkpoints, command, is_rank, make_run, meeting_point
from trainer import distributed, train
from trainer.checkpoints import writer as checkpoint_writer
from trainer.checkpoints.files import State, list_checkpoints, load_checkpoint, save_checkpoint
from trainer.checkpoints.writer import CheckpointWriter
from trainer.data import photometric
from trainer.training import loop, session, throughput
from trainer.training.loop import Due, due_after
from trainer.training.step import Training
from transforms.core import storage
from transforms.core.errors import StorageError
from transforms.core.exit_codes import NOT_FINITE, RESTART, UNFINISHED, WRONG_CONFIG

WRITING_S = 1.0
Break = Callable[[pytest.MonkeyPatch, int], None]
"""Breaks something on a rank."""


def not_finite(patch: pytest.MonkeyPatch, rank: int) -> None:
    patch.setattr(
        "trainer.objectives.base.augment", lambda *a, **k: photometric.augment(*a, **k) * torch.nan
    )


def signal_to_rank_1(patch: pytest.MonkeyPatch, rank: int) -> None:
    update = Training.update

    def stopped(self: Training, batch: Any) -> None:
        if rank == 1 and self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, batch)

    patch.setattr(Training, "update", stopped)


def bad_data_on_rank_1(patch: pytest.MonkeyPatch, rank: int) -> None:
    def fail(self: Training, batch: Any) -> None:
        raise StorageError(None, "cannot read shard: gone")

    if rank == 1:
        patch.setattr(Training, "update", fail)


def out_of_memory_on_rank_1(patch: pytest.MonkeyPatch, rank: int) -> None:
    def fail(self: Training, batch: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    if rank == 1:
        patch.setattr(Training, "update", fail)


def another_folder_on_rank_1(patch: pytest.MonkeyPatch, rank: int) -> None:
    if rank == 1:
        patch.setattr(
            train, "train_folder", lambda config: f"{config.run}/train-of-another-machine"
        )


CASES: dict[str, Break] = {
    "not finite": not_finite,
    "signal": signal_to_rank_1,
    "bad data": bad_data_on_rank_1,
    "out of memory": out_of_memory_on_rank_1,
    "two folders": another_folder_on_rank_1,
}


def _rank(rank: int, ports: list[int], folder: str) -> None:
    write, done = storage.replace_bytes, [0.0]

    def slow(data: bytes, url: str) -> None:
        if url.endswith(".pt"):
            time.sleep(WRITING_S)
        write(data, url)
        done[0] = time.monotonic()

    results = {}
    for port, (name, spoil) in zip(ports, CASES.items(), strict=True):
        is_rank(rank, port)
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
            patch.setattr(storage, "replace_bytes", slow)
            spoil(patch, rank)
            code = command(Path(folder, name), "num_threads=1")
            distributed.stop()
        lines = said.getvalue().splitlines()
        results[name] = (code, lines[-1] if lines else "", done[0], time.monotonic())
    torch.save(results, Path(folder, f"rank-{rank}.pt"))


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_ranks_wait_for_each_other_and_say_what_only_they_know(tmp_path: Path) -> None:
    for name in CASES:
        make_run(tmp_path / name)
    points = [meeting_point() for _ in CASES]
    ports = [point.port for point in points]
    start_ranks(_rank, 2, ports, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))

    for name, exit_code in (("not finite", NOT_FINITE), ("signal", RESTART)):
        assert (first[name][0], second[name][0]) == (exit_code, exit_code)
        written, left = first[name][2], second[name][3]
        assert left >= written, f"{name}: rank 1 waits for what rank 0 writes"
    replay = load_checkpoint(str(tmp_path / "not finite/train/replay-step-000000000.pt"))
    assert len(replay["caption_ids"]) == 4
    assert list(list_checkpoints(str(tmp_path / "signal/train/checkpoints"))) == [2]

    assert second["bad data"][:2] == (UNFINISHED, "rank 1: cannot read shard: gone")
    said = second["out of memory"][1]
    assert second["out of memory"][0] == WRONG_CONFIG
    assert said.startswith("rank 1: the device is out of memory: expected a smaller captions_per")
    for name in ("bad data", "out of memory"):
        assert first[name][0] == UNFINISHED, "no checkpoint was saved"
        assert "rank 0 lost the others" in first[name][1]

    assert first["two folders"][0] == second["two folders"][0] == WRONG_CONFIG
    assert "but ranks 1 do not see it: expected a folder that all" in first["two folders"][1]


def test_checkpoints_are_as_far_apart_as_is_asked_and_count_as_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, update, save = [0.0], Training.update, CheckpointWriter.save

    def ten_seconds(self: Training, batch: Any) -> None:
        now[0] += 10.0
        update(self, batch)

    def twenty_seconds(self: CheckpointWriter, state: State) -> None:
        now[0] += 20.0
        save(self, state)

    monkeypatch.setattr(Training, "update", ten_seconds)
    monkeypatch.setattr(CheckpointWriter, "save", twenty_seconds)
    for module in (loop, throughput):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run = make_run(tmp_path / "run")
    assert command(run, "steps=8", "checkpoint.every_s=25", "checkpoint.keep=9") == 0
    assert list(list_checkpoints(checkpoints(run))) == [3, 6, 8]
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").open()]
    assert [row["images_per_s"] for row in rows] == [0.8] * 8


def test_the_log_is_durable_before_a_checkpoint_that_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, there = make_run(tmp_path / "run"), f"memory://{uuid.uuid4().hex}"
    lines, save = [], save_checkpoint

    def watched(*arguments: Any) -> str:
        lines.append(storage.read_bytes(f"{there}/train/metrics.jsonl").count(b"\n"))
        return save(*arguments)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", watched)
    every_two = "checkpoint.every_steps=2"
    assert command(run, f"run={there}", f"data.images={run / 'images'}", every_two) == 0
    assert lines == [2, 4]


def test_patience_with_other_ranks_ends_when_all_have_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_rank, done = distributed.any_rank, list[object]()

    def asked(*flags: bool) -> list[bool]:
        done.append("a step of all")
        return any_rank(*flags)

    monkeypatch.setattr(distributed, "any_rank", asked)
    monkeypatch.setattr(distributed, "expect_answers_within", done.append)
    assert command(make_run(tmp_path / "run"), "skip_steps=[[0,0]]", "execution.timeout_s=70") == 0
    assert done == [*["a step of all"] * 2, 70.0, *["a step of all"] * 2]


def test_a_rank_reads_its_share_and_leaves_others_their_part_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of four ranks on two machines."""
    asked: list[dict[str, Any]] = []
    for name, number in (("rank", 1), ("world_size", 4), ("ranks_on_machine", 2)):
        monkeypatch.setattr(distributed, name, lambda number=number: number)
    monkeypatch.setattr(session, "batches", lambda *_, **settings: asked.append(settings))
    run = make_run(tmp_path / "run")
    config = tiny_config(run)
    session.rank_batches(config, session.open_samples(config), range(3, 5))
    (settings,) = asked
    steps = [settings.pop(name) for name in ("first_step", "last_step")]
    assert steps == [3, 5]
    assert settings == {"captions_per_batch": 4, "rank": 1, "ranks": 4, "ranks_here": 2}


NOTHING = Due(log=False, knn=False, save=False, stop=False)


def due(step: int, **changes: Any) -> Due:
    """Return what is due after one of ten steps, with a line every 4 and kNN every 3 steps."""
    states = {"stopped": False, "checkpoint_due": False, "writing": False, **changes}
    monitor = {"knn_every": states.pop("knn_every", 3)}
    config = tiny_config("unused", steps=10, log_every=4, monitor=monitor)
    return due_after(config, step, **states)


def test_lines_and_knn_are_due_at_their_steps_and_at_the_end() -> None:
    steps = range(1, 11)
    assert [step for step in steps if due(step).log] == [1, 5, 9, 10]
    assert [step for step in steps if due(step).knn] == [3, 6, 9, 10]
    assert not any(due(step, knn_every=None).knn for step in steps)
    assert [step for step in steps if due(step).check] == [1, 3, 5, 6, 9, 10]
    assert due(2) == NOTHING
    assert not NOTHING.check


def test_a_checkpoint_is_due_by_the_config_and_at_the_end() -> None:
    assert due(2, checkpoint_due=True) == replace(NOTHING, save=True)
    assert due(2, checkpoint_due=True, writing=True).save, "once the one before is written"
    assert due(10).save
    assert due(2, checkpoint_due=True).check, "what is saved must be finite"


def test_a_stop_saves_unless_a_checkpoint_is_being_written_and_skips_knn() -> None:
    assert due(3, stopped=True) == replace(NOTHING, save=True, stop=True)
    assert due(3, stopped=True, writing=True) == replace(NOTHING, stop=True)
    assert due(2, stopped=True, writing=True, checkpoint_due=True) == replace(NOTHING, stop=True)
    assert due(2, stopped=True, writing=True).check


def test_a_stop_in_the_last_step_ends_a_training_that_is_done() -> None:
    assert due(10, stopped=True, writing=True) == Due(log=True, knn=False, save=True, stop=False)
