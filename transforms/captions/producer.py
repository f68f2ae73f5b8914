"""Producer of caption shards (paper, section 3.1).

Shard i holds the ordinals [i * captions_per_shard, (i + 1) * captions_per_shard). All its prompts
go to the engine at once, so that continuous batching never waits for stragglers. Completions are
cleaned and filtered; a dropped ordinal is tried again with a new seed. An ordinal without a good
caption after all tries becomes a dead letter.

Different from the paper on purpose: it mentions no filter, and the authors' code has none; we drop
what is not a caption of its concept, with a counted reason.
"""

from collections.abc import Sequence

from transforms.captions.filters import FilterConfig, Phrases, clean, drop_reason
from transforms.captions.prompts import PromptSource
from transforms.core.counters import Count, Tally
from transforms.core.records import Caption, Failure, Prompt
from transforms.core.seeding import caption_id, derive
from transforms.core.stages import Produced
from transforms.engines.text.base import Completion, TextEngine, TextEngineSpec, complete_each

CODE_VERSION = 2
"""Version of the code that asks for captions and decides which are kept; in the fingerprint."""


class CaptionProducer:
    """Makes caption shards; a `transforms.core.stages.Producer`.

    Args:
        prompts: The prompts.
        engine: Engine that completes them; None if the text of a prompt is already a caption.
        filters: Which captions to keep.
        blocked: Phrases that no caption may contain.
        captions_per_shard: Ordinals of a shard.
        max_tries: Completions that are tried for an ordinal before it becomes a dead letter.
    """

    def __init__(
        self,
        prompts: PromptSource,
        engine: TextEngineSpec | None,
        filters: FilterConfig,
        blocked: Phrases,
        captions_per_shard: int,
        max_tries: int,
    ) -> None:
        self._prompts = prompts
        self._spec = engine
        self._filters = filters
        self._blocked = blocked
        self._captions_per_shard = captions_per_shard
        # Without an engine, every try gives the same caption.
        self._max_tries = max_tries if engine else 1
        self._engine: TextEngine | None = None

    def setup(self) -> None:
        """Load the model, if there is one."""
        if self._spec is not None:
            self._engine = self._spec.open()

    def record_ids(self, shard: int) -> list[str]:
        """Return the ordinals of a shard."""
        return [str(ordinal) for ordinal in self._ordinals(shard)]

    def produce(self, shard: int, tally: Tally) -> list[Produced]:
        """Return captions and dead letters of a shard, in the order of their ordinals."""
        results: dict[int, Produced] = {}
        pending = [self._prompts.build(ordinal) for ordinal in self._ordinals(shard)]
        for attempt in range(self._max_tries):
            if attempt and pending:
                tally.count(Count.RETRIES, len(pending))
            completions = self._complete(pending, attempt)
            for prompt, completion in zip(pending, completions, strict=True):
                tally.count(Count.TOKENS, completion.num_tokens)
                result = judge(prompt, completion, self._filters, self._blocked)
                if isinstance(result, Failure):
                    tally.count(Count(result.reason))
                results[prompt.ordinal] = result
            pending = [prompt for prompt in pending if _worth_another_try(results[prompt.ordinal])]
        return [results[ordinal] for ordinal in self._ordinals(shard)]

    def _complete(self, prompts: Sequence[Prompt], attempt: int) -> list[Completion]:
        texts = [prompt.text for prompt in prompts]
        if self._spec is None:
            return [Completion(text, True, 0) for text in texts]
        assert self._engine is not None, "setup comes first"
        seeds = [sampling_seed(prompt, attempt) for prompt in prompts]
        return complete_each(self._engine, texts, seeds)

    def _ordinals(self, shard: int) -> range:
        start = shard * self._captions_per_shard
        return range(start, start + self._captions_per_shard)


def sampling_seed(prompt: Prompt, attempt: int) -> int:
    """Return the engine's seed for one try of a prompt; the first try has the prompt's own seed."""
    return derive(prompt.seed, "retry", attempt) if attempt else prompt.seed


def _worth_another_try(result: Produced) -> bool:
    # The engine would refuse the same prompt again.
    return isinstance(result, Failure) and result.reason != Count.ENGINE_ERROR


def judge(
    prompt: Prompt, completion: Completion, filters: FilterConfig, blocked: Phrases
) -> Caption | Failure:
    """Return the caption in a completion, or the reason why there is none."""
    ordinal = str(prompt.ordinal)
    if completion.error is not None:
        return Failure(ordinal, Count.ENGINE_ERROR.value, completion.error)
    text = clean(completion.text, completion.finished)
    reason = drop_reason(text, completion.finished, prompt, filters, blocked)
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
