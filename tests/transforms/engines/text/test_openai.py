import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.openai_endpoint import Answer, Endpoint, serving
from transforms.core.errors import ConfigError
from transforms.engines.text.base import EngineError, SamplingConfig
from transforms.engines.text.openai import OpenAIConfig, OpenAIEngine

SAMPLING = SamplingConfig(temperature=0.5, top_p=0.8, max_new_tokens=30)


def answer(body: dict[str, Any]) -> Answer:
    """Answer a prompt that is a number with that HTTP status."""
    prompt = body["prompt"]
    if prompt == "nothing":
        return Answer()
    status = int(prompt) if prompt.isdigit() else 200
    return Answer(f" about {prompt}", status, "length" if prompt == "long" else "stop")


def first(trouble: Answer, times: int) -> Callable[[dict[str, Any]], Answer]:
    """Answer the first `times` requests with `trouble`, and later ones normally."""
    numbers = itertools.count()
    return lambda body: trouble if next(numbers) < times else answer(body)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(answer) as server:
        yield server


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


@pytest.mark.parametrize(
    "trouble", [Answer(status=503), Answer(status=429), Answer("half", cut_off=True)]
)
def test_a_server_that_is_in_trouble_for_a_while_is_asked_again(trouble: Answer) -> None:
    with serving(first(trouble, 3)) as endpoint:
        completions = engine(endpoint, max_retries=5).complete(["a", "b"], [1, 2])
        assert [c.text for c in completions] == [" about a", " about b"]
        assert len(endpoint.requests) == 5


@pytest.mark.parametrize("prompt", ["401", "404", "500"])
def test_an_endpoint_that_does_not_work_stops_the_run(endpoint: Endpoint, prompt: str) -> None:
    with pytest.raises(EngineError, match=f"answered {prompt}.*'engine.base_url'"):
        engine(endpoint, max_retries=0).complete(["a", prompt], [1, 2])


def test_an_endpoint_that_is_not_there_stops_the_run() -> None:
    gone = OpenAIConfig(base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(EngineError, match="cannot be reached"):
        OpenAIEngine("llama", gone, SAMPLING).complete(["a"], [1])


def test_the_key_comes_from_a_file(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    engine(endpoint, api_key_file=str(tmp_path / "key")).complete(["a"], [1])
    assert endpoint.headers == ["Bearer secret"]
    with pytest.raises(ConfigError, match=r"engine\.api_key_file.*cannot be read"):
        engine(endpoint, api_key_file=str(tmp_path / "none"))
