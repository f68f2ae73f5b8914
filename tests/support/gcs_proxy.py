"""Proxy for a GCS server that fails on purpose."""

import contextlib
import http.client
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class GcsProxy:
    """State of the proxy.

    Attributes:
        url: Address of the proxy, for STORAGE_EMULATOR_HOST.
        answers: Status -> number of answers; status 0 counts connections that were cut off.
        unavailable: Number of a request -> whether the proxy answers 503.
        cuts: Number of an upload -> whether the proxy cuts it off half-way.
    """

    def __init__(self, server: str) -> None:
        self.server = urlsplit(server)
        self.url = ""
        self.answers: Counter[int] = Counter()
        self.unavailable: Callable[[int], bool] = lambda number: False
        self.cuts: Callable[[int], bool] = lambda number: False
        self.num_requests = 0
        self.num_uploads = 0
        self.lock = threading.Lock()

    def is_unavailable(self) -> bool:
        """Count a request; return whether to refuse it."""
        with self.lock:
            self.num_requests += 1
            return self.unavailable(self.num_requests)

    def is_cut(self) -> bool:
        """Count an upload; return whether to cut it off."""
        with self.lock:
            self.num_uploads += 1
            return self.cuts(self.num_uploads)


@contextlib.contextmanager
def gcs_proxy(server: str) -> Iterator[GcsProxy]:
    """Run a proxy for the GCS server at the address `server`."""
    proxy = GcsProxy(server)

    class Handler(_Handler):
        state = proxy

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{listener.server_port}"
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield proxy
    listener.shutdown()


class _Handler(BaseHTTPRequestHandler):
    state: GcsProxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.state.is_unavailable():
            self._answer(503, {}, b"")
        elif self.path.startswith("/upload/") and self.state.is_cut():
            self._cut_off(body)
        else:
            target = self.state.server
            connection = http.client.HTTPConnection(str(target.hostname), target.port)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            self._answer(response.status, dict(response.getheaders()), response.read())
            connection.close()

    do_GET = do_POST = do_DELETE = do_PUT = _pass_on

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.state.answers[status] += 1
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _cut_off(self, body: bytes) -> None:
        """Send the server half of the content, then close both connections."""
        lines = [f"{self.command} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode()
        target = self.state.server
        with socket.create_connection((str(target.hostname), target.port or 80)) as server:
            server.sendall(head + body[: len(body) // 2])
        self.state.answers[0] += 1
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass
