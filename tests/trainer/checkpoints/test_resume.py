"""All ranks continue from the same checkpoint, and notice when another rank is gone."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from tests.support.ranks import start_ranks
from trainer import distributed
from trainer.checkpoints import files as checkpoint_files
from trainer.checkpoints import resume
from trainer.checkpoints.files import (
    CheckpointConfig,
    State,
    list_checkpoints,
    map_checkpoint,
    save_checkpoint,
)
from transforms.core import storage
from transforms.core.errors import ConfigError

pytestmark = pytest.mark.xdist_group("processes")

PATIENCE_S = 3.0
SLOW_S = 9.0


def ranks(work: Any, folder: Path, *arguments: str) -> list[Any]:
    """Return the result of `work(rank, *arguments)` on each of two ranks of one machine."""
    start_ranks(_rank, 2, work, str(folder), *arguments)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def _rank(rank: int, work: Any, folder: str, *arguments: str) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", str(rank))
        torch.save(work(rank, patch, *arguments), f"{folder}/rank-{rank}.pt")
    distributed.abort()


def _newest(rank: int, patch: pytest.MonkeyPatch, folder: str) -> tuple[Any, ...]:
    reads: list[str] = []
    check = checkpoint_files._check_sums

    def watched(path: str, url: str) -> None:
        reads.append(url)
        check(path, url)

    def late(path: str, url: str) -> State:
        time.sleep(0.5)  # The local copy must still be there.
        return map_checkpoint(path, url)

    patch.setattr(checkpoint_files, "_check_sums", watched)
    patch.setattr(resume, "map_checkpoint", late)
    with resume.newest_on_all_ranks(folder) as found:
        assert found is not None
    # The local copy is removed, but its mapped content can still be read.
    return found.url, found.state["step"], found.state["weights"] * 1, reads


@pytest.mark.parametrize("kind", ["local", "gcs"])
def test_all_ranks_have_the_newest_whole_one_and_one_of_a_machine_reads_it(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = str(tmp_path / "checkpoints")
    if kind == "gcs":
        folder = request.getfixturevalue("gcs_bucket") + "/run"
    for step in (1, 2):
        url = save_checkpoint(
            {"step": step, "weights": torch.full((5,), step)}, folder, CheckpointConfig(keep=9)
        )
    storage.replace_bytes(storage.read_bytes(url)[:-50], url)
    whole = list_checkpoints(folder)[1]
    first, second = ranks(_newest, tmp_path, folder)
    for found in (first, second):
        assert found[:2] == (whole, 1)
        assert found[2].tolist() == [1] * 5
    assert (first[3], second[3]) == ([url, whole], [])


def _none(rank: int, patch: pytest.MonkeyPatch, folder: str) -> list[str]:
    said = []
    with resume.newest_on_all_ranks(f"{folder}/empty") as found:
        said.append(str(found))
    try:
        with resume.newest_on_all_ranks(folder):
            pass
    except (ConfigError, distributed.LostRankError) as error:
        said.append(str(error))
    return said


def test_no_checkpoint_and_no_whole_one_are_known_to_all(tmp_path: Path) -> None:
    (tmp_path / "step-000000001.pt").write_bytes(b"")
    first, second = ranks(_none, tmp_path, str(tmp_path))
    assert first[0] == second[0] == "None"
    assert "step-000000001.pt is damaged" in first[1]
    assert "rank 1 lost the others (rank 0: checkpoint " in second[1]
    assert "step-000000001.pt is damaged" in second[1]


def _patient(rank: int, patch: pytest.MonkeyPatch) -> tuple[float, str]:
    patch.setattr(distributed, "HEARTBEAT_S", 0.3)
    distributed.expect_answers_within(PATIENCE_S)
    distributed.run_on_all_ranks(lambda: time.sleep(SLOW_S * rank))
    started = time.monotonic()
    try:
        if rank == 1:
            time.sleep(SLOW_S)
        distributed.any_rank(False)
    except distributed.LostRankError as error:
        return time.monotonic() - started, str(error)
    return 0.0, ""


@pytest.mark.slow
def test_long_work_is_waited_for_and_silence_is_not(tmp_path: Path) -> None:
    (waited, said), _ = ranks(_patient, tmp_path)
    assert 0.9 * PATIENCE_S < waited < SLOW_S - 1.5
    assert "rank 0 lost the others" in said
