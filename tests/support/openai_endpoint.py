"""OpenAI-compatible completions endpoint on this machine, for tests of its clients."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """Answer of the endpoint; without a text it contains no choice."""

    text: str | None = None
    status: int = 200
    finish_reason: str = "stop"
    cut_off: bool = False
    """Close the connection half-way through the answer."""


class Endpoint(ThreadingHTTPServer):
    """Server that answers by a function of the request's body, and records requests."""

    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.under_way = 0
        self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @contextlib.contextmanager
    def counted(self, body: dict[str, Any], authorization: str) -> Iterator[None]:
        with self.lock:
            self.requests.append(body)
            self.headers.append(authorization)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        time.sleep(0.01)
        yield
        with self.lock:
            self.under_way -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing about clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.counted(body, self.headers["Authorization"]):
            answer = self.server.answer(body)
        content = json.dumps(_completion(body, answer)).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if answer.status in (429, 503):
            self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if answer.cut_off else content)
        self.close_connection = answer.cut_off

    def log_message(self, *arguments: object) -> None:
        pass


def _completion(body: dict[str, Any], answer: Answer) -> dict[str, Any]:
    if answer.status != 200:
        return {"error": {"message": f"status {answer.status}"}}
    choice = {"index": 0, "text": answer.text, "finish_reason": answer.finish_reason}
    return {
        "id": "1",
        "object": "text_completion",
        "created": 0,
        "model": body["model"],
        "choices": [] if answer.text is None else [choice | {"logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
    }


@contextlib.contextmanager
def serving(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[Endpoint]:
    """Run an endpoint for the duration of the body."""
    server = Endpoint(answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
