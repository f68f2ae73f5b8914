"""Captions: the producer of the captions stage (paper, section 3.1).

Shard i owns the ordinals [i * captions_per_shard, (i + 1) * captions_per_shard). Its prompts go to
the engine at once, so that continuous batching never waits for stragglers; what comes back is
cleaned and filtered, and ordinals that were dropped are asked again with a fresh seed. An ordinal
that never gives a good caption becomes a dead letter.

Different from the paper on purpose: it keeps every completion; we drop what is not a caption of
its concept, with a counted reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from transforms.caption_filters import FilterConfig, clean, drop_reason
from transforms.core.counters import Count, Tally
from transforms.core.records import Caption, Failure, Prompt
from transforms.core.seeding import caption_id, derive
from transforms.core.stage import Produced
from transforms.engines.openai_engine import OpenAIConfig, OpenAIEngine
from transforms.engines.text import Completion, SamplingConfig, TextEngine, complete_each
from transforms.engines.text_models import TextModel
from transforms.engines.vllm_engine import VllmConfig, VllmEngine
from transforms.prompts import PromptBuilder

CODE_VERSION = 1
"""Counts changes to the code that change what a prompt asks or which captions are kept."""


@dataclass(frozen=True)
class EngineSpec:
    """Which text engine to open; its config only, so that it pickles."""

    kind: Literal["vllm", "openai"]
    model: TextModel
    sampling: SamplingConfig
    vllm: VllmConfig
    openai: OpenAIConfig

    def open(self) -> TextEngine:
        """Load the model or connect to the endpoint."""
        if self.kind == "openai":
            return OpenAIEngine(self.model.name, self.openai, self.sampling)
        return VllmEngine(self.model, self.vllm, self.sampling)


class CaptionProducer:
    """Makes caption shards; a `transforms.core.stage.Producer`.

    Args:
        prompts: What to ask.
        engine: Whom to ask.
        filters: What to keep.
        captions_per_shard: Ordinals of a shard.
        max_tries: Times an ordinal is asked before it becomes a dead letter.
    """

    def __init__(
        self,
        prompts: PromptBuilder,
        engine: EngineSpec,
        filters: FilterConfig,
        captions_per_shard: int,
        max_tries: int,
    ) -> None:
        self._prompts = prompts
        self._spec = engine
        self._filters = filters
        self._captions_per_shard = captions_per_shard
        self._max_tries = max_tries
        self._engine: TextEngine | None = None

    def setup(self) -> None:
        """Load the model."""
        self._engine = self._spec.open()

    def record_ids(self, shard: int) -> list[str]:
        """The ordinals of a shard."""
        return [str(ordinal) for ordinal in self._ordinals(shard)]

    def produce(self, shard: int, tally: Tally) -> Iterator[Produced]:
        """Captions and dead letters of a shard, in the order of their ordinals."""
        assert self._engine is not None, "setup comes first"
        results: dict[int, Produced] = {}
        pending = [self._prompts.build(ordinal) for ordinal in self._ordinals(shard)]
        for attempt in range(self._max_tries):
            if attempt and pending:
                tally.count(Count.RETRIES, len(pending))
            texts = [prompt.text for prompt in pending]
            seeds = [sampling_seed(prompt, attempt) for prompt in pending]
            completions = complete_each(self._engine, texts, seeds)
            for prompt, completion in zip(pending, completions, strict=True):
                tally.count(Count.TOKENS, completion.num_tokens)
                result = judge(prompt, completion, self._filters)
                if isinstance(result, Failure):
                    tally.count(Count(result.reason))
                results[prompt.ordinal] = result
            pending = [prompt for prompt in pending if _worth_another_try(results[prompt.ordinal])]
        yield from (results[ordinal] for ordinal in self._ordinals(shard))

    def _ordinals(self, shard: int) -> range:
        start = shard * self._captions_per_shard
        return range(start, start + self._captions_per_shard)


def sampling_seed(prompt: Prompt, attempt: int) -> int:
    """The engine's seed for one try of a prompt; the first try has the prompt's own."""
    return derive(prompt.seed, "retry", attempt) if attempt else prompt.seed


def _worth_another_try(result: Produced) -> bool:
    # What the engine refused once it refuses again.
    return isinstance(result, Failure) and result.reason != Count.ENGINE_ERROR


def judge(prompt: Prompt, completion: Completion, filters: FilterConfig) -> Caption | Failure:
    """The caption that a completion holds, or why it holds none."""
    ordinal = str(prompt.ordinal)
    if completion.error is not None:
        return Failure(ordinal, Count.ENGINE_ERROR.value, completion.error)
    text = clean(completion.text, completion.finished)
    reason = drop_reason(text, completion.finished, prompt, filters)
    if reason is not None:
        return Failure(ordinal, reason.value, f"{prompt.concept.name} => {completion.text.strip()}")
    return Caption(
        caption_id=caption_id(text),
        text=text,
        ordinal=prompt.ordinal,
        concept=prompt.concept.name,
        source=prompt.concept.source,
        template=prompt.template,
        background=prompt.background,
        relation=prompt.relation,
    )
