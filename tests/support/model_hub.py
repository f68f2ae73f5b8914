"""Small hub of models on this machine that refuses or is silent, for tests of its client."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS: dict[str, tuple[int, dict[str, str]]] = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "private": (401, {"X-Error-Code": "RepoNotFound"}),
    "revision": (404, {"X-Error-Code": "RevisionNotFound"}),
    "entry": (404, {"X-Error-Code": "EntryNotFound"}),
    "token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "down": (503, {}),
    "website": (200, {}),
    "open": (200, {"X-Repo-Commit": "0123456789abcdef0123456789abcdef01234567", "ETag": '"1"'}),
}
"""Name of a model -> what the hub answers; it never answers for another name."""


class Hub(ThreadingHTTPServer):
    """Server that answers `HEAD /owner/NAME/...` as `ANSWERS` says, and records tokens."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokens: list[str | None] = []
        self.num_asked = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing about clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.server.num_asked += 1
        self.server.tokens.append(self.headers["Authorization"])
        answer = ANSWERS.get(self.path.split("/")[2])
        if answer is None:
            self.server.closing.wait()
            return
        status, headers = answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "2"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving_models() -> Iterator[Hub]:
    """Run a hub for the duration of the body."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
