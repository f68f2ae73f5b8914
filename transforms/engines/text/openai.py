"""Any OpenAI-compatible completions endpoint, for instance the user's own vLLM server.

A bounded number of requests runs at the same time. The client retries lost connections and the
answers 429 and 5xx with exponential back-off. A prompt that the server refuses (400, 413, 422)
costs one completion. A server that cannot be reached, or refuses the key or the model, stops the
run.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from transforms.core.config import no_fingerprint
from transforms.core.errors import ConfigError
from transforms.engines.model_refs import Model
from transforms.engines.text.base import (
    STOP,
    Completion,
    EngineError,
    SamplingConfig,
    TextEngineConfig,
)

_PROMPT_REFUSED = (400, 413, 422)


class OpenAIConfig(TextEngineConfig):
    """An OpenAI-compatible endpoint."""

    name: Literal["openai"] = "openai"
    """Send prompts to an OpenAI-compatible endpoint."""
    base_url: str = no_fingerprint("http://localhost:8000/v1")
    """Address of the API, up to and including its version."""
    api_key_file: str | None = no_fingerprint(None)
    """File that holds the key, as secrets are mounted; null sends a meaningless key."""
    concurrency: PositiveInt = no_fingerprint(64)
    """Requests in progress at the same time."""
    max_retries: NonNegativeInt = no_fingerprint(6)
    """Further attempts of one request; each waits twice as long as the last, at most 8 s."""
    timeout_s: PositiveFloat = no_fingerprint(120.0)
    """Seconds after which an attempt counts as failed."""

    def find_model(self, name: str, revision: str | None) -> Model:
        """Identify a model by its name: only the endpoint knows what it serves under that name."""
        return Model(name, None, f"endpoint:{name}")

    def open(self, model: Model, sampling: SamplingConfig) -> "OpenAIEngine":
        """Create a client; nothing is sent yet."""
        return OpenAIEngine(model.name, self, sampling)


class OpenAIEngine:
    """A `TextEngine` that asks an endpoint."""

    def __init__(self, model: str, config: OpenAIConfig, sampling: SamplingConfig) -> None:
        import openai

        self._model = model
        self._config = config
        self._sampling = sampling
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=_read_key(config.api_key_file),
            max_retries=config.max_retries,
            timeout=config.timeout_s,
        )

    def complete(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Completion]:
        """Return one completion per prompt; a refused prompt gets an error.

        Raises:
            EngineError: The endpoint does not work; no further request is sent.
        """
        pool = ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="openai")
        try:
            return list(pool.map(self._complete_one, prompts, seeds))
        finally:
            pool.shutdown(cancel_futures=True)

    def restart(self) -> None:
        """Do nothing: the client has no state."""

    def _complete_one(self, prompt: str, seed: int) -> Completion:
        import openai

        try:
            answer: Any = self._client.completions.create(
                model=self._model,
                prompt=prompt,
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                max_tokens=self._sampling.max_new_tokens,
                stop=[STOP],
                seed=seed,
            )
        except openai.APIStatusError as error:
            if error.status_code in _PROMPT_REFUSED:
                return Completion("", False, 0, f"the endpoint refused the prompt: {error.message}")
            raise self._unusable(f"answered {error.status_code} ({error.message})") from error
        except openai.APIConnectionError as error:
            raise self._unusable(f"cannot be reached ({error.message})") from error
        if not answer.choices:
            return Completion("", False, 0, "the endpoint gave no completion")
        choice = answer.choices[0]
        tokens = answer.usage.completion_tokens if answer.usage else 0
        return Completion(choice.text or "", choice.finish_reason == "stop", tokens)

    def _unusable(self, what: str) -> EngineError:
        return EngineError(
            f"the endpoint {self._config.base_url} {what}, also after "
            f"{self._config.max_retries} retries where they could help: check 'engine.base_url', "
            "'engine.api_key_file' and 'model', then run the same command again"
        )


def _read_key(path: str | None) -> str:
    if path is None:
        return "none"
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"key 'engine.api_key_file' has value {path!r}: it cannot be read: {error.strerror}"
        ) from error
