"""The fault matrix: processes that die, hang, or work on the same output."""

import io
import signal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.support.fault_matrix import Matrix
from tests.support.gcs_proxy import GcsProxy
from trainer.data.shard_reader import ShardReader
from transforms.core import storage

pytestmark = pytest.mark.xdist_group("processes")

KILLS = [
    "kill_while_painting:9",
    "kill_while_writing:7",
    "kill_while_publishing:4",
    "kill_between_shard_and_commit:3",
    "kill_after_commit:5",
    "kill_before_index:1",
    "kill_while_writing_index:1",
    "kill_between_index_and_success:1",
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", KILLS)
def test_killed(matrix: Matrix, fault: str) -> None:
    code, said = matrix.suffer(fault)
    assert code == -signal.SIGKILL, said
    assert not storage.exists(f"{matrix.run}/images/_SUCCESS")
    assert matrix.verify() == 1
    matrix.ends_as_undisturbed()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code"), [("terminate_while_painting:9", 143), ("interrupt_while_painting:9", 130)]
)
def test_stopped(matrix: Matrix, fault: str, code: int) -> None:
    seen, said = matrix.suffer(fault)
    assert seen == code, said
    assert said.splitlines()[-1].endswith("; run the same command again to continue")
    assert 0 < len(storage.list_files(f"{matrix.run}/images/commits")) < len(matrix.undisturbed)
    matrix.ends_as_undisturbed()


@pytest.fixture(scope="module")
def painted_by_tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Checksums of the shards of an undisturbed stage with the real model.

    Made by a process like the others: with another number of threads, kernels round otherwise.
    """
    folder = tmp_path_factory.mktemp("tiny-sd")
    matrix = Matrix(f"{folder}/run", folder / "images.yaml", [], num_captions=6, batch_size=4)
    code, said = matrix.suffer("none_tiny_sd")
    assert code == 0, said
    return matrix.checksums()


@pytest.mark.slow
def test_killed_while_tiny_sd_paints(tmp_path: Path, painted_by_tiny_sd: list[str]) -> None:
    small = {"num_captions": 6, "batch_size": 4}
    matrix = Matrix(f"{tmp_path}/run", tmp_path / "images.yaml", painted_by_tiny_sd, **small)
    code, said = matrix.suffer("kill_while_painting_tiny_sd:4")
    assert code == -signal.SIGKILL, said
    code, said = matrix.suffer("none_tiny_sd")
    assert code == 0, said
    matrix.ends_as_undisturbed()


def pictures(run: str) -> dict[str, list[NDArray[np.int16]]]:
    """Return the images of each caption."""
    reader = ShardReader(f"{run}/images/index.parquet")
    samples = [reader[number] for number in range(len(reader))]
    return {
        sample.caption_id: [np.asarray(Image.open(io.BytesIO(i)), np.int16) for i in sample.images]
        for sample in samples
    }


@pytest.mark.slow
def test_batch_that_does_not_fit_the_memory(tmp_path: Path) -> None:
    """The size of a batch changes no image but for rounding, which differs between processors."""
    small = {"num_captions": 6, "batch_size": 4}
    whole = Matrix(f"{tmp_path}/whole", tmp_path / "whole.yaml", [], **small)
    assert whole.suffer("none_tiny_sd")[0] == 0
    matrix = Matrix(f"{tmp_path}/run", tmp_path / "images.yaml", [], **small)
    code, said = matrix.suffer("run_out_of_memory_tiny_sd:2")
    assert code == 0, said
    assert "continuing with batches of 2" in said
    assert matrix.again() == 0
    assert matrix.verify() == 0
    ours, theirs = pictures(matrix.run), pictures(whole.run)
    assert list(ours) == list(theirs)
    differences = [
        np.abs(one - other).mean()
        for key, images in ours.items()
        for one, other in zip(images, theirs[key], strict=True)
    ]
    assert max(differences) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_several_workers_on_one_plan(matrix: Matrix, number: int) -> None:
    workers = [matrix.start("none") for _ in range(number)]
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * number, said
    matrix.ends_as_undisturbed()


@pytest.mark.slow
def test_two_workers_publish_one_shard_at_the_same_moment(matrix: Matrix, tmp_path: Path) -> None:
    _meet(matrix, tmp_path, {})
    matrix.ends_as_undisturbed()


@pytest.mark.slow
def test_two_workers_publish_one_shard_at_the_same_moment_on_gcs(
    gcs_matrix: Matrix, tmp_path: Path, proxy: GcsProxy
) -> None:
    _meet(gcs_matrix, tmp_path, {"STORAGE_EMULATOR_HOST": proxy.url})
    assert proxy.answers[412] >= 1, "one of the two must have lost"
    gcs_matrix.ends_as_undisturbed()


def _meet(matrix: Matrix, folder: Path, environment: dict[str, str]) -> None:
    """Let two workers make the last shard of a stage at the same time."""
    assert matrix.again() == 0
    images = f"{matrix.run}/images"
    names = ("_SUCCESS", "index.parquet", "commits/000/images-000003.json")
    for name in (*names, "shards/000/images-000003.tar"):
        storage.delete(f"{images}/{name}")
    workers = [matrix.start(f"meet:{folder}", environment) for _ in range(2)]
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert len(list(folder.glob("worker-*"))) == 2


@pytest.mark.slow
def test_engine_that_hangs(tmp_path: Path, undisturbed: list[str], blocks: None) -> None:
    matrix = Matrix(
        str(tmp_path / "run"), tmp_path / "images.yaml", undisturbed, batch_timeout_s=2.0
    )
    code, said = matrix.suffer("hang:9")
    assert code == 1
    assert "the engine hangs" in said
    assert "run the same command again" in said
    assert 0 < len(storage.list_files(f"{matrix.run}/images/commits")) < len(undisturbed)
    matrix.ends_as_undisturbed("engine.batch_timeout_s=600")
