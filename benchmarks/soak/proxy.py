"""HTTP server that answers through a function, and fails on purpose in ways that can be chosen."""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

TROUBLES = ("429", "500", "503", "refused", "answer lost", "answer cut off", "silence")
"""Failures of a request: a status, a connection that is reset before or after the request is
carried out, half an answer, no answer until `SILENCE_S` have passed."""
UPLOAD_CUT_OFF = "upload cut off"
"""A further failure for a server behind an `Upstream`: it receives half of an upload."""
SILENCE_S = 20.0


class Request(NamedTuple):
    """A request; `is_cut` means that only half of the body arrives."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    is_cut: bool = False

    @property
    def is_upload(self) -> bool:
        """True for an upload to a GCS server."""
        return self.path.startswith("/upload/")


class Response(NamedTuple):
    """An answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes


NO_RESPONSE = Response(0, {}, b"")
"""Answer to a request that is cut."""


class Upstream:
    """A server that requests are passed on to."""

    def __init__(self, url: str) -> None:
        self._host = str(urlsplit(url).hostname)
        self._port = urlsplit(url).port or 80

    def __call__(self, request: Request) -> Response:
        """Pass a request on; return the answer."""
        if request.is_cut:
            self._send_half(request)
            return NO_RESPONSE
        connection = http.client.HTTPConnection(self._host, self._port, timeout=120)
        try:
            connection.request(request.method, request.path, request.body, dict(request.headers))
            response = connection.getresponse()
            return Response(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def _send_half(self, request: Request) -> None:
        lines = [f"{request.method} {request.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode()
        with socket.create_connection((self._host, self._port)) as server:
            server.sendall(head + request.body[: len(request.body) // 2])


class Troubles:
    """Troubles of a server, which come and go.

    Attributes:
        url: Address of the server, for its clients.
        trouble: Failure of some requests, a name of `TROUBLES`; None lets all pass.
        share: Share of the requests that fail, from 0 to 1.
    """

    def __init__(self) -> None:
        self.url = ""
        self.trouble: str | None = None
        self.share = 0.0
        self._random = random.Random(0)

    def __call__(self, request: Request) -> str | None:
        """Return the failure of a request; None lets it pass."""
        if self._random.random() >= self.share:
            return None
        return None if self.trouble == UPLOAD_CUT_OFF and not request.is_upload else self.trouble


@dataclass(frozen=True)
class Proxy:
    """A running server.

    Attributes:
        url: Address of the server.
        answer: Carries out a request.
        trouble: Chooses the failure of a request, a name of `TROUBLES`; None lets it pass.
    """

    url: str
    answer: Callable[[Request], Response]
    trouble: Callable[[Request], str | None]


@contextlib.contextmanager
def serving(
    answer: Callable[[Request], Response], trouble: Callable[[Request], str | None]
) -> Iterator[Proxy]:
    """Run a server on this machine for the duration of the body; see `Proxy`."""

    class Handler(_Handler):
        pass

    server = _Server(("127.0.0.1", 0), Handler)
    Handler.proxy = Proxy(f"http://127.0.0.1:{server.server_port}", answer, trouble)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Handler.proxy
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def troubled(answer: Callable[[Request], Response]) -> Iterator[Troubles]:
    """Run a server for the duration of the body; it is in the troubles that it yields."""
    troubles = Troubles()
    with serving(answer, troubles) as proxy:
        troubles.url = proxy.url
        yield troubles


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing about clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, dict(self.headers.items()), body)
        trouble = self.proxy.trouble(request)
        if trouble == "silence":
            time.sleep(SILENCE_S)
        if trouble in ("refused", "silence"):
            self._reset()
        elif trouble is not None and trouble.isdecimal():
            self._send(Response(int(trouble), {}, b""), 0)
        else:
            response = self.proxy.answer(request._replace(is_cut=trouble == UPLOAD_CUT_OFF))
            if trouble in ("answer lost", UPLOAD_CUT_OFF):
                self._reset()
            else:
                size = len(response.content)
                self._send(response, size // 2 if trouble else size)

    do_GET = do_POST = do_DELETE = do_PUT = _handle

    def _send(self, response: Response, num_bytes: int) -> None:
        """Send the first `num_bytes` of the content of an answer."""
        self.send_response(response.status)
        for name, value in response.headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.content)))
        self.end_headers()
        self.wfile.write(response.content[:num_bytes])
        self.close_connection = True

    def _reset(self) -> None:
        """Close the connection as a machine does that fails."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass
