"""Backgrounds: places where a concept plausibly is, found by a language model (paper, section 3.1).

A prompt shows three things with their places and asks for those of one more, on one line. Each
place stands with its preposition, "in a reed bed": without one, a small model soon goes on with
other things instead. One answer names a handful, so each concept is asked again, with fresh
examples and a fresh seed, until it has enough. Shard i owns the concepts
[i * concepts_per_shard, (i + 1) * concepts_per_shard) among the objects of the list; places and
textures have no use for backgrounds.

Different from the paper on purpose: it says neither how many answers it took nor what it left out;
we drop what is no place, with a counted reason, and a concept with hardly any is a dead letter.
"""

import itertools
import re
import sys
import unicodedata
from dataclasses import replace

from pydantic import PositiveInt, model_validator

from transforms.captions.examples import EXAMPLES_PER_PROMPT, query
from transforms.captions.filters import base_forms, words_of
from transforms.core.config import Config, load_config, no_fingerprint
from transforms.core.counters import Count, Tally
from transforms.core.errors import ConfigError
from transforms.core.records import Backgrounds, Concept, Failure, from_table
from transforms.core.seeding import derive
from transforms.core.shard_reader import CommittedShards
from transforms.core.stages import Produced, stage_folder
from transforms.engines.text.base import (
    Completion,
    SamplingConfig,
    TextEngine,
    TextEngineSpec,
    complete_each,
)

CODE_VERSION = 2
"""Counts changes to the code that change what is asked or which places are kept."""

INSTRUCTION = "Say in, on, at or by which different places each thing can be seen."

_SEPARATORS = re.compile(r"[,;|]|\s/\s|(?<=[^\W\d_]{3})\.\s")
_DECORATION = re.compile(r"^(?:[\s\-*•·–—\"“”‘’'`(\[]|\d{1,2}[.):]\s)+|[\s.!?:\"“”‘’'`)\]]+$")
_PREPOSITION = re.compile(
    r"^(?:and |or )?(?:in|on|at|by|inside|near|beside) (?:(?:the|a|an|its|some) )*(?=\S)",
    re.IGNORECASE,
)


class BackgroundsConfig(Config):
    """How places are asked for and which are kept."""

    places_per_concept: PositiveInt = 100
    """Places after which a concept is asked no more; paper: 74 to 100."""
    min_places: PositiveInt = 10
    """A concept with fewer when its tries are used up, or one fails, is a dead letter."""
    max_tries: PositiveInt = 40
    """Times a concept is asked."""
    places_per_answer: PositiveInt = 10
    """Places that are read from the beginning of an answer; what follows drifts off."""
    max_words: PositiveInt = 7
    """A place of more words is dropped."""
    concepts_per_shard: PositiveInt = 100
    """Concepts of a shard, which are asked together."""
    sampling: SamplingConfig = SamplingConfig()
    """How places are sampled; as captions by default."""
    examples: str | None = no_fingerprint(None)
    """Things with their places, a .yaml file; null takes ours."""

    @model_validator(mode="after")
    def _possible(self) -> "BackgroundsConfig":
        if self.min_places > self.places_per_concept:
            raise ValueError(
                f"key 'backgrounds.min_places' has value {self.min_places}: expected at most "
                f"places_per_concept ({self.places_per_concept})"
            )
        return self


class ThingEntry(Config):
    """A thing and where it can be, as the file of examples states it."""

    concept: str
    """Its name."""
    places: tuple[str, ...]
    """Where it can be."""


class ThingFile(Config):
    """The in-context examples of the backgrounds stage."""

    examples: tuple[ThingEntry, ...]
    """At least three."""


def load_things(path: str) -> tuple[str, ...]:
    """Read the examples as lines of a prompt, `concept => place, place, ...`.

    Raises:
        ConfigError: The file cannot be read, or holds too few.
    """
    entries = load_config(ThingFile, path).examples
    if len({entry.concept for entry in entries}) < EXAMPLES_PER_PROMPT:
        raise ConfigError(
            f"{path} has {len(entries)} examples: expected at least {EXAMPLES_PER_PROMPT}, each of "
            "another concept"
        )
    return tuple(f"{query(entry.concept, None)} => {', '.join(entry.places)}" for entry in entries)


class BackgroundProducer:
    """Makes background shards; a `transforms.core.stages.Producer`.

    Args:
        concepts: What places are wanted for; only the objects among them are asked about.
        examples: Lines from `load_things`.
        engine: Whom to ask.
        config: How often, and what to keep.
        seed: The run's seed.
    """

    def __init__(
        self,
        concepts: tuple[Concept, ...],
        examples: tuple[str, ...],
        engine: TextEngineSpec,
        config: BackgroundsConfig,
        seed: int,
    ) -> None:
        # Without the places of their lists, which would travel to every worker for nothing.
        self.concepts = tuple(replace(c, backgrounds=()) for c in concepts if c.kind == "object")
        self._examples = examples
        self._spec = engine
        self._config = config
        self._seed = seed
        self._engine: TextEngine | None = None

    def setup(self) -> None:
        """Load the model."""
        self._engine = self._spec.open()

    def record_ids(self, shard: int) -> list[str]:
        """The concepts of a shard, as `source/name`."""
        return [record_id(concept) for concept in self._shard(shard)]

    def produce(self, shard: int, tally: Tally) -> list[Produced]:
        """The places of each concept, or a dead letter, in the order of the list."""
        assert self._engine is not None, "setup comes first"
        searches = [_Search(concept, self._config) for concept in self._shard(shard)]
        for attempt in range(self._config.max_tries):
            pending = [search for search in searches if search.goes_on]
            if attempt:
                tally.count(Count.RETRIES, len(pending))
            prompts = [self.prompt(search.concept, attempt) for search in pending]
            seeds = [derive(self._seed, "places", prompt) for prompt in prompts]
            completions = complete_each(self._engine, prompts, seeds)
            for search, completion in zip(pending, completions, strict=True):
                tally.count(Count.TOKENS, completion.num_tokens)
                search.read(completion, tally)
        return [search.result(tally) for search in searches]

    def prompt(self, concept: Concept, attempt: int) -> str:
        """What the model is asked about a concept, a pure function of seed, concept and try."""

        def order(line: str) -> int:
            return derive(self._seed, "things", record_id(concept), attempt, line)

        shown = sorted(self._examples, key=order)[:EXAMPLES_PER_PROMPT]
        return "\n".join([INSTRUCTION, *shown, f"{query(concept.name, None)} =>"])

    def _shard(self, shard: int) -> tuple[Concept, ...]:
        size = self._config.concepts_per_shard
        return self.concepts[shard * size : (shard + 1) * size]


class _Search:
    """The places found for one concept so far."""

    def __init__(self, concept: Concept, config: BackgroundsConfig) -> None:
        self.concept = concept
        self._config = config
        self._places: dict[str, str] = {}
        self._error: str | None = None

    @property
    def goes_on(self) -> bool:
        return self._error is None and len(self._places) < self._config.places_per_concept

    def read(self, completion: Completion, tally: Tally) -> None:
        """Keep the new places of an answer, and count what is dropped."""
        self._error = completion.error
        for item in items_of(completion)[: self._config.places_per_answer]:
            place = _PREPOSITION.sub("", item)
            key = " ".join(words_of(place))
            reason = Count.DROP_NO_PLACE if place == item else None
            reason = reason or drop_reason(place, self.concept.name, self._config.max_words)
            if reason is None and key in self._places:
                reason = Count.DROP_REPEATED
            if reason is not None:
                tally.count(reason)
            elif self.goes_on:
                self._places[key] = place

    def result(self, tally: Tally) -> Backgrounds | Failure:
        places = tuple(self._places.values())
        # Also after an error: what was found before it is as good as ever.
        if len(places) >= self._config.min_places:
            return Backgrounds(self.concept.source, self.concept.name, places)
        reason = Count.DROP_TOO_FEW_PLACES if self._error is None else Count.ENGINE_ERROR
        tally.count(reason)
        detail = self._error or f"{len(places)} places: {', '.join(places)}"
        return Failure(record_id(self.concept), reason.value, detail)


def items_of(completion: Completion) -> list[str]:
    """What an answer lists, without decoration; an item that was cut off at the end is left out."""
    items = _SEPARATORS.split(unicodedata.normalize("NFC", completion.text))
    if not completion.finished:
        items.pop()
    cleaned = (" ".join(_DECORATION.sub("", item).split()) for item in items)
    return [item for item in cleaned if item]


def drop_reason(place: str, concept: str, max_words: int) -> Count | None:
    """Why something that a model named is not kept as a place of a concept, or None if it is."""
    words = words_of(place)
    # Marks are parts of letters in many scripts.
    if not words or not all(
        c.isalnum() or c in " -'’.&" or unicodedata.category(c)[0] == "M" for c in place
    ):
        return Count.DROP_NON_TEXT
    if len(words) > max_words:
        return Count.DROP_TOO_LONG
    forms = [base_forms(word) for word in words]
    if any(one & other for one, other in itertools.pairwise(forms)):
        return Count.DROP_REPEATED
    named = {form for word in words_of(concept) for form in base_forms(word)}
    if all(form & named for form in forms):
        return Count.DROP_NAMES_CONCEPT
    return None


def record_id(concept: Concept) -> str:
    """A concept's name in the records of the stage."""
    return Backgrounds(concept.source, concept.name, ()).record_id


def with_run_backgrounds(concepts: tuple[Concept, ...], run: str) -> tuple[Concept, ...]:
    """The concepts with the places that the backgrounds stage of `run` found for them.

    A concept for which it found none keeps the places of its list.

    Raises:
        MissingFileError: The stage is not complete.
        DamagedFileError: A shard is not the one that its commit record describes.
    """

    def shared(places: tuple[str, ...]) -> tuple[str, ...]:
        # Many concepts have "beach": one string for all keeps memory and pickles small.
        return tuple(map(sys.intern, places))

    shards = CommittedShards.open(stage_folder(run, "backgrounds"))
    rows = (row for table in shards.tables() for row in from_table(table, Backgrounds))
    found = {row.record_id: shared(row.places) for row in rows}
    return tuple(
        replace(concept, backgrounds=found.get(record_id(concept), concept.backgrounds))
        for concept in concepts
    )
