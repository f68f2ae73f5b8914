"""Language models behind one interface: prompts in, completions out; and the handling of failures.

A prompt that makes an engine fail costs one completion: the batch is halved until the prompt is
alone. After each failure, a harmless prompt shows whether the engine still works: if it does not
answer, it is restarted, and if it still does not, the run stops. The run also stops if the engine
dies more often than it takes to find one prompt that kills it: a batch of n prompts is halved about
log2(n) times. The count starts again after each prompt that is found.
"""

import contextlib
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field, NonNegativeFloat, PositiveInt

from transforms.core.config import Config, fingerprint_fields
from transforms.core.errors import ConfigError
from transforms.engines.model_refs import Model

log = logging.getLogger(__name__)

STOP = "\n"
"""A caption is one line."""

HARMLESS_PROMPT = "A red apple on a"
"""Every engine that works completes it."""

MAX_FAILURES_IN_A_ROW = 8
"""Prompts that fail alone, with no success in between, before the run stops: then the cause is not
the prompts."""


class EngineError(RuntimeError):
    """The engine cannot work; the message is one sentence: what is wrong and what to do."""


class SamplingConfig(Config):
    """Settings of sampling; the paper states none."""

    temperature: NonNegativeFloat = 0.8
    """Temperature (authors' code: 0.8). 0 is greedy: each try then gives the same caption."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the likeliest tokens that one is drawn from (authors' code: 0.9)."""
    max_new_tokens: PositiveInt = 100
    """Tokens after which a completion is cut off (authors' code: 100)."""


@dataclass(frozen=True)
class Completion:
    """The completion of one prompt, or the reason why there is none."""

    text: str
    """Text up to the first newline, as the model wrote it."""
    finished: bool
    """True if the model ended the line itself, before its tokens ran out."""
    num_tokens: int
    """Generated tokens; 0 if the engine does not report them."""
    error: str | None = None
    """Why this prompt has no completion."""


class TextEngine(Protocol):
    """A loaded language model."""

    def complete(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Completion]:
        """Return one completion per prompt, in order; each depends on its prompt and seed only.

        Raises:
            EngineError: The engine cannot work at all; trying again will not help.
            Exception: Anything else; the engine must then complete another batch, or raise again.
        """

    def restart(self) -> None:
        """Make the engine usable again after it raised."""


class TextEngineConfig(Config):
    """Section `engine` of a captions config: a text engine and its settings.

    A subclass registers an engine: it has a `name` that is a `Literal`, its own settings, and these
    methods. Importing its module must be quick, so heavy packages are imported in the methods.
    """

    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages of `fingerprint.PACKAGES` whose versions may change the completions."""
    name: str
    """Name of the engine."""

    @abstractmethod
    def find_model(self, name: str, revision: str | None) -> Model:
        """Look a model up and compute its identity, without loading it.

        Args:
            name: The `model` of the config.
            revision: Branch, tag or commit of a hub id.

        Raises:
            ConfigError: There is no such model.
        """

    @abstractmethod
    def open(self, model: Model, sampling: SamplingConfig) -> TextEngine:
        """Load a model that `find_model` has found, or connect to it."""

    def check_device(self) -> None:
        """Check that this machine has the device that the engine needs.

        Raises:
            ConfigError: The device is missing.
        """

    def check_sampling(self, sampling: SamplingConfig, section: str) -> None:
        """Check that the engine can sample like this.

        Args:
            sampling: How to sample.
            section: Dotted key of `sampling`, for the error message.

        Raises:
            ConfigError: It cannot.
        """

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that change completions, by their names in a fingerprint."""
        fields = fingerprint_fields(self)
        return {"engine": fields.pop("name")} | {
            f"{self.name}.{key}": value for key, value in fields.items()
        }


@dataclass(frozen=True)
class TextEngineSpec:
    """All that a worker needs to open a text engine. It pickles and is small."""

    model: Model
    config: TextEngineConfig
    sampling: SamplingConfig

    def open(self) -> TextEngine:
        """Load the model or connect to it."""
        return self.config.open(self.model, self.sampling)


def complete_each(
    engine: TextEngine, prompts: Sequence[str], seeds: Sequence[int]
) -> list[Completion]:
    """Call `engine.complete`; a prompt that makes it raise gets a completion with an error.

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
            num_restarts += _restart_if_dead(engine, reason)
            # More restarts than it takes to find one deadly prompt: the prompts are not the cause.
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
    """Return the completions, or the error as text.

    The exception itself must not be kept: its frames hold the broken model in memory.
    """
    try:
        return engine.complete(prompts, seeds)
    except (EngineError, ConfigError):
        raise
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())


def _restart_if_dead(engine: TextEngine, reason: str) -> bool:
    """Make sure that the engine works; return whether it had to be restarted.

    Raises:
        EngineError: It does not work after a restart either.
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
        raise _dead(f"it died ({reason}) and still fails when restarted", again) from error
    return True


def _dead(what: str, reason: str) -> EngineError:
    return EngineError(
        f"the text engine does not work: {what} ({reason}); everything committed so far is kept"
    )
