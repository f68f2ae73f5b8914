"""Language models behind one interface: prompts in, completions out, and what happens on failure.

A prompt that makes an engine fail costs one completion: the batch is cut until the prompt stands
alone. An engine that fails whatever it is asked stops the run instead.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field

from transforms.core.config import Config, ConfigError

_LOGGER = logging.getLogger(__name__)

STOP = "\n"
"""A caption is one line."""

MAX_FAILURES_IN_A_ROW = 3
"""Prompts failing on their own, with no success in between, before the engine counts as dead."""


class EngineError(RuntimeError):
    """The engine cannot work; the message is one sentence: what is wrong and what to do."""


class SamplingConfig(Config):
    """How captions are sampled (paper, section 3.1)."""

    temperature: Annotated[float, Field(ge=0)] = 0.8
    """Reference: 0.8. 0 is greedy: each try then gives the same caption."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Reference: 0.9."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 100
    """Tokens after which a caption is cut; reference: 100."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote, or why it did not."""

    text: str
    """Up to the first newline, as the model wrote it."""
    finished: bool
    """Whether the model ended the line itself, before its tokens ran out."""
    num_tokens: int
    """Generated tokens; 0 where the engine does not say."""
    error: str | None = None
    """Why this prompt has no completion."""


class TextEngine(Protocol):
    """A loaded language model."""

    def complete(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Completion]:
        """One completion per prompt, in order; each depends on its own prompt and seed.

        Raises:
            Exception: Anything; the engine is then restarted before it is used again.
        """

    def restart(self) -> None:
        """Make the engine usable after it raised."""


def complete_each(
    engine: TextEngine, prompts: Sequence[str], seeds: Sequence[int]
) -> list[Completion]:
    """As `engine.complete`, but a prompt that makes it raise gets a completion with an error.

    Raises:
        EngineError: The engine fails on everything.
    """
    completions: list[Completion | None] = [None] * len(prompts)
    spans = [(0, len(prompts))] if prompts else []
    failures_in_a_row = 0
    while spans:
        start, end = spans.pop()
        try:
            part = engine.complete(prompts[start:end], seeds[start:end])
        except (EngineError, ConfigError):
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _LOGGER.warning("the text engine failed on %d prompts: %s", end - start, reason)
            if end - start == 1:
                failures_in_a_row += 1
                completions[start] = Completion("", False, 0, reason)
            if failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                raise _dead(reason) from error
            _restart(engine)
            spans += _parts(start, end)
            continue
        assert len(part) == end - start, "an engine completes every prompt"
        completions[start:end] = part
        failures_in_a_row = 0
    return [completion for completion in completions if completion is not None]


def _parts(start: int, end: int) -> list[tuple[int, int]]:
    """What to try next when a span failed, last one first.

    Its first prompt alone, to learn soon whether the engine works at all, then the halves of the
    rest.
    """
    if end - start == 1:
        return []
    middle = (start + 1 + end) // 2
    parts = [(middle, end), (start + 1, middle), (start, start + 1)]
    return [(first, last) for first, last in parts if first < last]


def _restart(engine: TextEngine) -> None:
    try:
        engine.restart()
    except Exception as error:
        raise _dead(f"it cannot be restarted: {type(error).__name__}: {error}") from error


def _dead(reason: str) -> EngineError:
    return EngineError(
        f"the text engine fails whatever it is asked ({reason}); everything committed is kept"
    )
