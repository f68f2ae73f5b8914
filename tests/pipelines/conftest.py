"""The images stage of the fault matrix, in several places."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fault_matrix import Matrix
from tests.support.fault_process import BlockSpec
from tests.support.gcs_proxy import GcsProxy, gcs_proxy


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Checksums of the shards of a stage that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.images.ImageEngineSpec", BlockSpec)
        matrix = Matrix(str(folder / "run"), folder / "images.yaml", [])
        assert matrix.again() == 0
    return matrix.checksums()


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks in place of what a diffusion model paints."""
    monkeypatch.setattr("pipelines.images.ImageEngineSpec", BlockSpec)


@pytest.fixture
def matrix(tmp_path: Path, undisturbed: list[str], blocks: None) -> Matrix:
    """On local disk."""
    return Matrix(str(tmp_path / "run"), tmp_path / "images.yaml", undisturbed)


@pytest.fixture
def gcs_matrix(gcs_bucket: str, tmp_path: Path, undisturbed: list[str], blocks: None) -> Matrix:
    """On a GCS server."""
    return Matrix(f"{gcs_bucket}/run", tmp_path / "images.yaml", undisturbed)


@pytest.fixture
def proxy(gcs_server: str) -> Iterator[GcsProxy]:
    """A proxy before that server."""
    with gcs_proxy(gcs_server) as started:
        yield started
