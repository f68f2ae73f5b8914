"""Backgrounds: places where a concept plausibly is, found by a language model (paper, section 3.1).

A prompt shows three things with their places and asks for the places of one more, on one line. Each
place has its preposition, "in a reed bed": without it, a small model soon lists other things. One
answer names a few places, so each concept is asked for again, with new examples and a new seed,
until it has enough. Shard i holds the concepts [i * concepts_per_shard, (i + 1) *
concepts_per_shard) of the objects in the list; places and textures need no backgrounds.

Different from the paper on purpose: it does not tell how many answers it took, nor what it left
out. We drop items that are not places, with a counted reason, and a concept with too few places is
a dead letter.
"""

import itertools
import re
import sys
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import replace

from pydantic import PositiveInt, model_validator

from transforms.captions.examples import EXAMPLES_PER_PROMPT, query
from transforms.captions.filters import base_forms, words_of
from transforms.core.config import Config, Place, load_data, no_fingerprint
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
"""Version of the code that asks for places and decides which are kept; in the fingerprint."""

INSTRUCTION = "Say in, on, at or by which different places each thing can be seen."

_SEPARATORS = re.compile(r"[,;|]|\s/\s|(?<=[^\W\d_]{3})\.\s")
_DECORATION = re.compile(r"^(?:[\s\-*•·–—\"“”‘’'`(\[]|\d{1,2}[.):]\s)+|[\s.!?:\"“”‘’'`)\]]+$")
_PREPOSITION = re.compile(
    r"^(?:and |or )?(?:in|on|at|by|inside|near|beside) (?:(?:the|a|an|its|some) )*(?=\S)",
    re.IGNORECASE,
)


class BackgroundsConfig(Config):
    """Section `backgrounds`: how places are asked for, and which are kept."""

    places_per_concept: PositiveInt = 100
    """Places per concept that are enough (authors' lists: 74 to 100)."""
    min_places: PositiveInt = 10
    """A concept that has fewer after its tries, or after one that fails, is a dead letter."""
    max_tries: PositiveInt = 40
    """Prompts per concept."""
    places_per_answer: PositiveInt = 10
    """Places that are read from the beginning of an answer; later ones are off topic."""
    max_words: PositiveInt = 7
    """A place with more words is dropped."""
    concepts_per_shard: PositiveInt = 100
    """Concepts of a shard; their prompts are completed together."""
    sampling: SamplingConfig = SamplingConfig()
    """How places are sampled."""
    examples: Place | None = no_fingerprint(None)
    """In-context examples, a .yaml file of things with their places; null takes ours."""

    @model_validator(mode="after")
    def _check(self) -> "BackgroundsConfig":
        if self.min_places > self.places_per_concept:
            raise ValueError(
                f"key 'backgrounds.min_places' has value {self.min_places}: expected at most "
                f"places_per_concept ({self.places_per_concept})"
            )
        return self


class ThingEntry(Config):
    """A thing with its places, in the file of examples."""

    concept: str
    """Name of the thing."""
    places: tuple[str, ...]
    """Places where it can be, each with its preposition."""


class ThingFile(Config):
    """The in-context examples of the backgrounds stage."""

    examples: tuple[ThingEntry, ...]
    """At least three."""


def load_things(path: str) -> tuple[str, ...]:
    """Read the examples as lines of a prompt, `concept => place, place, ...`.

    Raises:
        ConfigError: The file cannot be read, or holds too few examples.
    """
    entries = load_data(ThingFile, path).examples
    if len({entry.concept for entry in entries}) < EXAMPLES_PER_PROMPT:
        raise ConfigError(
            f"{path} has {len(entries)} examples: expected at least {EXAMPLES_PER_PROMPT}, each of "
            "another concept"
        )
    return tuple(f"{query(entry.concept, None)} => {', '.join(entry.places)}" for entry in entries)


class BackgroundProducer:
    """Makes background shards; a `transforms.core.stages.Producer`.

    Args:
        concepts: The concept list; places are found for its objects only.
        examples: Lines from `load_things`.
        engine: Engine that completes the prompts.
        config: How places are asked for, and which are kept.
        seed: Seed of the run.

    Raises:
        ConfigError: Two concepts have the same id.
    """

    def __init__(
        self,
        concepts: tuple[Concept, ...],
        examples: tuple[str, ...],
        engine: TextEngineSpec,
        config: BackgroundsConfig,
        seed: int,
    ) -> None:
        # Without the places of the list, which workers do not need.
        self.concepts = tuple(replace(c, backgrounds=()) for c in concepts if c.kind == "object")
        _check_ids(self.concepts)
        self._examples = examples
        self._spec = engine
        self._config = config
        self._seed = seed
        self._engine: TextEngine | None = None

    def setup(self) -> None:
        """Load the model."""
        self._engine = self._spec.open()

    def record_ids(self, shard: int) -> list[str]:
        """Return the concepts of a shard, as `source/name`."""
        return [record_id(concept) for concept in self._shard(shard)]

    def produce(self, shard: int, tally: Tally) -> list[Produced]:
        """Return the places of each concept, or a dead letter, in the order of the list."""
        assert self._engine is not None, "setup comes first"
        searches = [_Search(concept, self._config) for concept in self._shard(shard)]
        for attempt in range(self._config.max_tries):
            pending = [search for search in searches if search.is_open]
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
        """Return a prompt about a concept; it depends only on seed, concept and attempt."""

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
    def is_open(self) -> bool:
        return self._error is None and len(self._places) < self._config.places_per_concept

    def read(self, completion: Completion, tally: Tally) -> None:
        """Keep the new places of an answer; count what is dropped."""
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
            elif self.is_open:
                self._places[key] = place

    def result(self, tally: Tally) -> Backgrounds | Failure:
        places = tuple(self._places.values())
        # Also after an error: the places found before it are valid.
        if len(places) >= self._config.min_places:
            return Backgrounds(self.concept.source, self.concept.name, places)
        reason = Count.DROP_TOO_FEW_PLACES if self._error is None else Count.ENGINE_ERROR
        tally.count(reason)
        detail = self._error or f"{len(places)} places: {', '.join(places)}"
        return Failure(record_id(self.concept), reason.value, detail)


def items_of(completion: Completion) -> list[str]:
    """Return the items of an answer without decoration; without a last item that was cut off."""
    items = _SEPARATORS.split(unicodedata.normalize("NFC", completion.text))
    if not completion.finished:
        items.pop()
    cleaned = (" ".join(_DECORATION.sub("", item).split()) for item in items)
    return [item for item in cleaned if item]


def drop_reason(place: str, concept: str, max_words: int) -> Count | None:
    """Return why an item of an answer is not kept as a place of a concept, None if it is kept."""
    words = words_of(place)
    # In many scripts, marks are parts of letters.
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
    """Return the id of a concept in the records of the stage."""
    return Backgrounds(concept.source, concept.name, ()).record_id


def _check_ids(concepts: tuple[Concept, ...]) -> None:
    """Check that ids differ: a source may contain the "/" that ends it in an id."""
    known: dict[str, Concept] = {}
    for concept in concepts:
        other = known.setdefault(record_id(concept), concept)
        if other is not concept:
            raise ConfigError(
                f"concepts {other.name!r} of source {other.source!r} and {concept.name!r} of "
                f"source {concept.source!r} have the same id {record_id(concept)!r} in the "
                "backgrounds stage: rename one of the sources"
            )


def found_backgrounds(run: str) -> Iterator[Backgrounds]:
    """Yield what the backgrounds stage of `run` has found.

    Raises:
        MissingFileError: The stage is not complete.
        DamagedFileError: A shard is not the one that its commit record describes.
    """
    shards = CommittedShards.open(stage_folder(run, "backgrounds"))
    for table in shards.tables():
        yield from from_table(table, Backgrounds)


def with_run_backgrounds(
    concepts: tuple[Concept, ...], run: str, kept: Collection[str] = ()
) -> tuple[Concept, ...]:
    """Return the concepts with the places that the backgrounds stage of `run` found for them.

    A concept for which it found none keeps the places of its list.

    Args:
        concepts: Concepts with the places of their list.
        run: Folder or URL of the run.
        kept: Sources whose concepts keep the places of their list, if these have any.

    Raises:
        MissingFileError: The stage is not complete.
        DamagedFileError: A shard is not the one that its commit record describes.
    """

    def shared(places: tuple[str, ...]) -> tuple[str, ...]:
        # Many concepts have "beach": one string for all keeps memory and pickles small.
        return tuple(map(sys.intern, places))

    found = {(row.source, row.concept): shared(row.places) for row in found_backgrounds(run)}
    return tuple(
        c
        if c.backgrounds and c.source in kept
        else replace(c, backgrounds=found.get((c.source, c.name), c.backgrounds))
        for c in concepts
    )
