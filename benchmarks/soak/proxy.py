"""HTTP server that answers through a function, and is in trouble for a while if it is told so."""

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

TROUBLES = ("429", "500", "503", "refused", "answer lost", "answer cut off", "silence")
"""What can happen to a request: a status, a connection that is reset before or after the request is
carried out, half an answer, no answer until `SILENCE_S` have passed."""
SILENCE_S = 20.0


class Request(NamedTuple):
    """A request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Response(NamedTuple):
    """An answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass
class FaultyProxy:
    """State of the server.

    Attributes:
        answer: Carries out a request.
        url: Address of the server.
        trouble: What happens to some requests; None lets all pass.
        share: Share of the requests to which it happens.
        num_troubled: Requests to which it happened.
    """

    answer: Callable[[Request], Response]
    url: str = ""
    trouble: str | None = None
    share: float = 0.0
    num_troubled: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next_trouble(self) -> str | None:
        """Return what happens to the next request."""
        with self._lock:
            if self.trouble is None or self._random.random() >= self.share:
                return None
            self.num_troubled += 1
            return self.trouble


@contextlib.contextmanager
def serving(answer: Callable[[Request], Response]) -> Iterator[FaultyProxy]:
    """Run a server on this machine for the duration of the body."""
    proxy = FaultyProxy(answer)

    class Handler(_Handler):
        state = proxy

    server = _Server(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing about clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    state: FaultyProxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, dict(self.headers.items()), body)
        trouble = self.state.next_trouble()
        if trouble == "silence":
            time.sleep(SILENCE_S)
        if trouble in ("refused", "silence"):
            self._reset()
        elif trouble is not None and trouble.isdecimal():
            self._send(Response(int(trouble), {}, b""), len(b""))
        else:
            response = self.state.answer(request)
            if trouble == "answer lost":
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
        if self.command != "HEAD":
            self.wfile.write(response.content[:num_bytes])
        self.close_connection = True

    def _reset(self) -> None:
        """Close the connection as a machine does that fails."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass
