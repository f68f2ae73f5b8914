"""Fixtures of the fault matrix."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fault_matrix import Matrix
from tests.support.fault_process import BlockSpec
from tests.support.gcs_proxy import GcsProxy, gcs_proxy


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the checksums of the shards of a stage without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.images.ImageEngineSpec", BlockSpec)
        matrix = Matrix(str(folder / "run"), folder / "images.yaml", [])
        assert matrix.again() == 0
    return matrix.checksums()


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the diffusion model by `BlockEngine`."""
    monkeypatch.setattr("pipelines.images.ImageEngineSpec", BlockSpec)


@pytest.fixture
def matrix(tmp_path: Path, undisturbed: list[str], blocks: None) -> Matrix:
    """Return the stage in a folder on local disk."""
    return Matrix(str(tmp_path / "run"), tmp_path / "images.yaml", undisturbed)


@pytest.fixture
def gcs_matrix(gcs_bucket: str, tmp_path: Path, undisturbed: list[str], blocks: None) -> Matrix:
    """Return the stage in a bucket of the GCS server."""
    return Matrix(f"{gcs_bucket}/run", tmp_path / "images.yaml", undisturbed)


@pytest.fixture
def proxy(gcs_server: str) -> Iterator[GcsProxy]:
    """Return a proxy for that server."""
    with gcs_proxy(gcs_server) as started:
        yield started
