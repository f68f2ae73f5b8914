import contextlib
import errno
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import google.auth.exceptions
import pytest
import requests
from gcsfs.retry import ChecksumError, HttpError

from transforms.core import storage
from transforms.core.errors import StorageError
from transforms.core.storage import object_store

URL = "gs://bucket/run/file"

CALLS: dict[str, Callable[[str], object]] = {
    "exists": lambda local: storage.exists(URL),
    "read": lambda local: storage.read_bytes(URL),
    "download": lambda local: storage.download(URL, local),
    "list": lambda local: storage.list_files(URL),
    "publish": lambda local: storage.publish_bytes(b"content", URL),
    "publish much": lambda local: storage.publish_bytes(bytes(32 << 20), URL),
    "replace": lambda local: storage.replace_bytes(b"content", URL),
    "delete": lambda local: storage.delete(URL),
    "delete folder": lambda local: storage.delete_folder(URL),
}

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n"


class SilentServer:
    """A server that sends an answer, or the beginning of one, and nothing more.

    Attributes:
        num_requests: Connections so far.
        answer: Bytes to send when the header of a request has arrived; if None, it reads nothing.
    """

    def __init__(self) -> None:
        self.num_requests = 0
        self.answer: bytes | None = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        self._open: list[socket.socket] = []

    def close(self) -> None:
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.num_requests += 1
            self._open.append(connection)
            if self.answer is not None:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.recv(1 << 16)
            connection.sendall(self.answer or b"")
            while connection.recv(1 << 20):
                pass
        except OSError:
            return


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentServer]:
    """A silent server, and clients that have less patience than usual."""

    async def no_wait(_: float) -> None:
        return None

    server = SilentServer()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.port}")
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", no_wait)
    monkeypatch.setattr(object_store, "SILENCE_S", 0.2)
    object_store.forget_connections()
    yield server
    object_store.forget_connections()
    server.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("call", "begins"),
    [*((call, False) for call in CALLS), ("read", True), ("list", True), ("download", True)],
)
def test_a_silent_server_is_asked_six_times_then_a_sentence(
    silent: SilentServer, call: str, begins: bool, tmp_path: Path
) -> None:
    silent.answer = HEAD + b"half" if begins else b""
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"the server does not answer; .*run the same command"):
        CALLS[call](f"{tmp_path}/copy")
    assert silent.num_requests == (12 if call == "exists" else 6), "of a file and of a folder"
    assert time.monotonic() - started < 30


@pytest.mark.timeout(60)
@pytest.mark.skipif(sys.platform != "linux", reason="the queue of connections differs")
def test_a_server_that_accepts_no_connection_is_given_up(
    silent: SilentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On Linux this alone would do; elsewhere there is only the limit of the client library.
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as queue:
        address = full.getsockname()
        with contextlib.suppress(TimeoutError):
            while True:  # Until the queue of connections that nobody accepts is full.
                queue.enter_context(socket.create_connection(address, timeout=0.5))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{address[1]}")
        object_store.forget_connections()
        with pytest.raises(StorageError, match=r"cannot read .*run the same command again"):
            CALLS["read"]("")
    assert silent.num_requests == 0


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="a setting of Linux")
def test_a_server_that_reads_nothing_of_an_upload_is_given_up(silent: SilentServer) -> None:
    silent.answer = None
    with pytest.raises(StorageError, match=r"cannot write .*run the same command again"):
        CALLS["publish much"]("")
    assert silent.num_requests == 6


def test_a_silent_server_is_given_up_after_two_minutes() -> None:
    """As docs/operate.md says; half a minute is for the waits between the tries."""
    waits = sum(2**number + 0.5 for number in range(5))
    assert 110 < 6 * object_store.SILENCE_S + waits < 130


def test_a_server_whose_name_is_unknown_is_a_sentence_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    object_store.forget_connections()
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"knows no address of the server storage\.googleapis"):
        storage.read_bytes(URL)
    assert time.monotonic() - started < 5
    object_store.forget_connections()


@pytest.mark.parametrize(
    "error",
    [
        ChecksumError("the checksum of the content is not that of the header"),
        HttpError({"code": 503, "message": "unavailable"}),
        aiohttp.ClientPayloadError("the answer is not complete"),
        aiohttp.ServerTimeoutError("Timeout on reading data from socket"),
        google.auth.exceptions.RefreshError("the token is too old"),
        requests.exceptions.ProxyError("bad gateway"),
        OSError(errno.ECONNRESET, "Connection reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_server_does_wrong_is_a_failure_of_storage(error: Exception) -> None:
    expected = pytest.raises(StorageError, match=r"cannot read gs://.*run the same command again")
    with expected as caught, storage.accessing("read", URL):
        raise error
    is_silent = isinstance(error, TimeoutError)
    assert ("the server does not answer" in str(caught.value)) == is_silent
