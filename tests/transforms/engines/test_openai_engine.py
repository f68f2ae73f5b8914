import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from transforms.core.config import ConfigError
from transforms.engines.openai_engine import OpenAIConfig, OpenAIEngine
from transforms.engines.text import EngineError, SamplingConfig

SAMPLING = SamplingConfig(temperature=0.5, top_p=0.8, max_new_tokens=30)


class Endpoint(ThreadingHTTPServer):
    """A completions endpoint: a prompt that is a number is answered with that status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.flaky = 0
        self.under_way = 0
        self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.headers.append(self.headers["Authorization"])
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
            failing = self.server.flaky > 0
            self.server.flaky -= failing
        time.sleep(0.01)
        prompt = body["prompt"]
        status = 503 if failing else int(prompt) if prompt.isdigit() else 200
        choice = {"index": 0, "text": f" about {prompt}", "finish_reason": "stop", "logprobs": None}
        if prompt == "long":
            choice["finish_reason"] = "length"
        answer: dict[str, Any] = {
            "id": "1",
            "object": "text_completion",
            "created": 0,
            "model": body["model"],
            "choices": [] if prompt == "nothing" else [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
        }
        if status != 200:
            answer = {"error": {"message": f"status {status}"}}
        content = json.dumps(answer).encode()
        with self.server.lock:
            self.server.under_way -= 1
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def engine(endpoint: Endpoint, **settings: Any) -> OpenAIEngine:
    return OpenAIEngine("llama", OpenAIConfig(base_url=endpoint.url, **settings), SAMPLING)


def test_completions_come_back_in_order(endpoint: Endpoint) -> None:
    prompts = [f"thing {i}" for i in range(40)]
    completions = engine(endpoint, concurrency=4).complete(prompts, range(40))
    assert [c.text for c in completions] == [f" about {prompt}" for prompt in prompts]
    assert all(c.finished and c.num_tokens == 3 and c.error is None for c in completions)
    assert 1 < endpoint.most_under_way <= 4
    by_prompt = {request["prompt"]: request for request in endpoint.requests}
    assert [by_prompt[prompt]["seed"] for prompt in prompts] == list(range(40))
    request = by_prompt["thing 7"]
    assert (request["model"], request["temperature"], request["top_p"]) == ("llama", 0.5, 0.8)
    assert (request["max_tokens"], request["stop"]) == (30, ["\n"])


def test_a_refused_prompt_costs_its_own_completion(endpoint: Endpoint) -> None:
    completions = engine(endpoint).complete(["fine", "400", "nothing", "long"], [1, 2, 3, 4])
    assert [c.error is None for c in completions] == [True, False, False, True]
    assert "refused the prompt" in str(completions[1].error)
    assert not completions[3].finished


def test_a_server_that_is_busy_for_a_while_is_asked_again(endpoint: Endpoint) -> None:
    endpoint.flaky = 3
    completions = engine(endpoint, max_retries=5).complete(["a", "b"], [1, 2])
    assert [c.text for c in completions] == [" about a", " about b"]
    assert len(endpoint.requests) == 5


@pytest.mark.parametrize("prompt", ["401", "404", "500"])
def test_an_endpoint_that_does_not_work_stops_the_run(endpoint: Endpoint, prompt: str) -> None:
    with pytest.raises(EngineError, match=f"answered {prompt}.*'openai.base_url'"):
        engine(endpoint, max_retries=0).complete(["a", prompt], [1, 2])


def test_an_endpoint_that_is_not_there_stops_the_run(endpoint: Endpoint) -> None:
    gone = OpenAIConfig(base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(EngineError, match="cannot be reached"):
        OpenAIEngine("llama", gone, SAMPLING).complete(["a"], [1])


def test_the_key_comes_from_a_file(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    engine(endpoint, api_key_file=str(tmp_path / "key")).complete(["a"], [1])
    assert endpoint.headers == ["Bearer secret"]
    with pytest.raises(ConfigError, match=r"openai\.api_key_file.*cannot be read"):
        engine(endpoint, api_key_file=str(tmp_path / "none"))
