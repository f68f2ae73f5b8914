"""Language models behind one interface: prompts in, completions out, and what happens on failure.

A prompt that makes an engine fail costs one completion: the batch is cut until the prompt stands
alone. Whether the prompt or the engine is to blame shows a harmless prompt: an engine that does not
answer it is restarted, and when it still does not, the run stops. The run also stops when the
engine dies more often than it takes to find the one prompt that kills it: a batch of n prompts is
halved about log2(n) times. From each prompt that is found the count begins anew.
"""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field, NonNegativeFloat, PositiveInt

from transforms.core.config import Config
from transforms.core.errors import ConfigError

log = logging.getLogger(__name__)

STOP = "\n"
"""A caption is one line."""

HARMLESS_PROMPT = "A red apple on a"
"""An engine that works completes it."""

MAX_FAILURES_IN_A_ROW = 8
"""Prompts failing on their own, with no success in between, before the run stops: something is
wrong with all of them."""


class EngineError(RuntimeError):
    """The engine cannot work; the message is one sentence: what is wrong and what to do."""


class SamplingConfig(Config):
    """How captions are sampled (paper, section 3.1)."""

    temperature: NonNegativeFloat = 0.8
    """Reference: 0.8. 0 is greedy: each try then gives the same caption."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Reference: 0.9."""
    max_new_tokens: PositiveInt = 100
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
            EngineError: Asking again, or something else, will not help.
            Exception: Anything; the engine must then complete another batch, or raise again.
        """

    def restart(self) -> None:
        """Make the engine usable after it raised."""


def complete_each(
    engine: TextEngine, prompts: Sequence[str], seeds: Sequence[int]
) -> list[Completion]:
    """As `engine.complete`, but a prompt that makes it raise gets a completion with an error.

    Raises:
        EngineError: The engine is dead, or every prompt fails.
    """
    completions: list[Completion | None] = [None] * len(prompts)
    spans = [(0, len(prompts))] if prompts else []
    num_restarts = failures_in_a_row = 0
    while spans:
        start, end = spans.pop()
        part = _attempt(engine, prompts[start:end], seeds[start:end])
        if isinstance(part, str):
            reason = part
            log.warning("the text engine failed on %d prompts: %s", end - start, reason)
            num_restarts += _restarted(engine, reason)
            # More than it takes to find one prompt that kills the engine: it dies of itself.
            if num_restarts > len(prompts).bit_length() + 1:
                raise _dead(f"it died {num_restarts} times", reason)
            if end - start > 1:
                middle = (start + end) // 2
                spans += [(middle, end), (start, middle)]
                continue
            part, num_restarts = [Completion("", False, 0, reason)], 0
        assert len(part) == end - start, "an engine completes every prompt"
        completions[start:end] = part
        failed = [completion for completion in part if completion.error is not None]
        failures_in_a_row = failures_in_a_row + len(failed) if len(failed) == len(part) else 0
        if failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise _dead("it fails on every prompt", str(failed[-1].error))
    return [completion for completion in completions if completion is not None]


def _attempt(
    engine: TextEngine, prompts: Sequence[str], seeds: Sequence[int]
) -> list[Completion] | str:
    """The completions, or why there are none.

    The exception itself must not live on: its frames hold the broken model in memory.
    """
    try:
        return engine.complete(prompts, seeds)
    except (EngineError, ConfigError):
        raise
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())


def _restarted(engine: TextEngine, reason: str) -> bool:
    """Make sure that the engine works; whether it had to be restarted for that.

    Raises:
        EngineError: It does not, restarted or not.
    """
    with contextlib.suppress(Exception):
        engine.complete([HARMLESS_PROMPT], [0])
        return False
    log.warning("the text engine does not answer and is restarted")
    try:
        engine.restart()
        engine.complete([HARMLESS_PROMPT], [0])
    except Exception as error:
        again = " ".join(f"{type(error).__name__}: {error}".split())
        raise _dead(f"it died ({reason}) and did not come back when restarted", again) from error
    return True


def _dead(what: str, reason: str) -> EngineError:
    return EngineError(
        f"the text engine does not work: {what} ({reason}); everything committed so far is kept"
    )
