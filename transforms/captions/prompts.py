"""Prompts for the language model, a pure function of (seed, ordinal) (paper, section 3.1).

There are three templates: the concept alone (`c`), with a background, or with a relation to
something that the model chooses. Places and textures use `c` only. A prompt consists of a one-line
instruction, three examples as `query => caption`, and the query to complete.

Different from the paper on purpose: the prompts of a shard share a pool of example triples, so that
the engine computes each shared beginning only once. The triples of a pool are drawn at random:
each single prompt has the same distribution as with independent draws, but the prompts of a shard
are not independent. `shared_examples: false` draws the examples of each prompt independently.
"""

import bisect
import itertools
import random
from collections.abc import Iterator
from typing import Protocol

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from transforms.captions.examples import EXAMPLES_PER_PROMPT, Examples, Group, query, text_digest
from transforms.core.config import Config
from transforms.core.errors import ConfigError
from transforms.core.records import Concept, Prompt, Template
from transforms.core.seeding import derive

INSTRUCTIONS: dict[Template, str] = {
    "c": "Describe a picture of each thing in one sentence.",
    "c-background": "Describe a picture of each thing in the given place in one sentence.",
    "c-relation": "Describe a picture of each thing and what it is related to in one sentence.",
}

_KIND_GROUPS: dict[str, Group] = {"object": "objects", "place": "places", "texture": "textures"}


class TemplateMix(Config):
    """Shares of the templates among objects; they need not add up to one."""

    c: NonNegativeFloat = 0.44
    """The concept alone (authors' code: 0.44)."""
    background: NonNegativeFloat = 0.45
    """With a background (authors' code: 0.45). Concepts without backgrounds use the other
    templates."""
    relation: NonNegativeFloat = 0.11
    """With a relation (authors' code: 0.11)."""

    @model_validator(mode="after")
    def _check(self) -> "TemplateMix":
        if self.c + self.background + self.relation <= 0:
            raise ValueError("at least one template must have a share above 0")
        return self


class PromptConfig(Config):
    """How prompts are drawn."""

    mix: TemplateMix = TemplateMix()
    """Shares of the templates among objects."""
    shared_examples: bool = True
    """Let the prompts of a shard share a pool of example triples, which saves computation."""
    num_pool_triples: PositiveInt = 16
    """Example triples in the pool of a shard, for each group of examples; needs shared_examples."""


class PromptSource(Protocol):
    """Source of a prompt for every ordinal. It is pickled."""

    def build(self, ordinal: int) -> Prompt:
        """Return the prompt of an ordinal, the same in every process."""

    def digests(self) -> dict[str, str]:
        """Return the identities of the lists that prompts are drawn from, for the fingerprint."""

    def plan(self) -> dict[tuple[str, str, str], float]:
        """Return the expected share of each (source, concept, template); empty if unknown."""

    def most_captions(self) -> int | None:
        """Return how many different captions there are at most; None if a model writes them."""


class ConceptSampler:
    """Draws concepts by their weights.

    Args:
        concepts: At least one concept; the weights need not add up to one.
    """

    def __init__(self, concepts: tuple[Concept, ...]) -> None:
        if not concepts:
            raise ConfigError("no concepts to write about: expected at least one")
        self._concepts = concepts
        self._cumulative = list(itertools.accumulate(concept.weight for concept in concepts))

    def at(self, share: float) -> Concept:
        """Return the concept at a point of [0, 1), of which each concept covers its share."""
        place = bisect.bisect_right(self._cumulative, share * self._cumulative[-1])
        return self._concepts[min(place, len(self._concepts) - 1)]

    def shares(self) -> Iterator[tuple[Concept, float]]:
        """Yield each concept with the probability that it is drawn."""
        return ((concept, concept.weight / self._cumulative[-1]) for concept in self._concepts)

    def digest(self) -> str:
        """Return the identity of the list, 16 hex digits."""
        return text_digest(map(repr, self._concepts))


class PromptBuilder:
    """Builds the prompt of any ordinal. It pickles: it holds lists, and no model.

    Args:
        concepts: Concepts to write about.
        examples: The in-context examples.
        relations: Relations for the template `c, relation`.
        config: Shares of the templates, and pools.
        seed: Seed of the run.
        pool_span: Number of ordinals that share a pool of examples: the captions of a shard.
    """

    def __init__(
        self,
        concepts: tuple[Concept, ...],
        examples: Examples,
        relations: tuple[str, ...],
        config: PromptConfig,
        seed: int,
        pool_span: int,
    ) -> None:
        self._concepts = ConceptSampler(concepts)
        self._examples = examples
        self._relations = relations
        self._config = config
        self._seed = seed
        self._pool_span = pool_span
        self._pools: dict[tuple[int, Group], list[str]] = {}

    def build(self, ordinal: int) -> Prompt:
        """Return the prompt of an ordinal, the same in every process."""
        # Only `random()`, whose sequence is the same in every version of Python.
        draw = random.Random(derive(self._seed, "prompt", ordinal)).random
        concept = self._concepts.at(draw())
        template = self._template(concept, draw())
        background = relation = None
        group = _KIND_GROUPS[concept.kind]
        if template == "c-background":
            group = "background"
            background = concept.backgrounds[int(draw() * len(concept.backgrounds))]
        elif template == "c-relation":
            group = "relation"
            relation = self._relations[int(draw() * len(self._relations))]
        if self._config.shared_examples:
            pool = self._pool(ordinal // self._pool_span, group)
            shown = pool[int(draw() * len(pool))]
        else:
            shown = _triple(self._examples.lines[group], draw(), draw(), draw())
        text = (
            f"{INSTRUCTIONS[template]}\n{shown}\n{query(concept.name, background or relation)} =>"
        )
        seed = derive(self._seed, "sample", ordinal)
        return Prompt(ordinal, concept, template, background, relation, text, seed)

    def digests(self) -> dict[str, str]:
        """Return the identities of the lists that prompts are drawn from, for the fingerprint."""
        instructions = (f"{name}\t{text}" for name, text in INSTRUCTIONS.items())
        return {
            "concepts_hash": self._concepts.digest(),
            "examples_hash": self._examples.digest(),
            "relations_hash": text_digest(self._relations),
            "instructions_hash": text_digest(instructions),
        }

    def plan(self) -> dict[tuple[str, str, str], float]:
        """Return the expected share of each (source, concept, template)."""
        return {
            (concept.source, concept.name, template): share * part / sum(mix.values())
            for concept, share in self._concepts.shares()
            for mix in [self._mix(concept)]
            for template, part in mix.items()
        }

    def most_captions(self) -> None:
        """Return nothing: a model writes the captions."""

    def _template(self, concept: Concept, at: float) -> Template:
        mix = self._mix(concept)
        at *= sum(mix.values())
        for template, part in mix.items():
            if at < part:
                return template
            at -= part
        return "c"

    def _mix(self, concept: Concept) -> dict[Template, float]:
        """Return the weights of the templates for a concept; they need not add up to one."""
        mix = self._config.mix
        background = mix.background if concept.backgrounds else 0.0
        # The mix may ask for backgrounds only, while the concept has none.
        if concept.kind != "object" or not mix.c + background + mix.relation:
            return {"c": 1.0}
        return {"c": mix.c, "c-background": background, "c-relation": mix.relation}

    def _pool(self, shard: int, group: Group) -> list[str]:
        """Return the example triples of a shard; recent pools are kept."""
        key = (shard, group)
        if key not in self._pools:
            if len(self._pools) >= 64:
                self._pools.clear()
            draw = random.Random(derive(self._seed, "pool", shard, group)).random
            lines = self._examples.lines[group]
            self._pools[key] = [
                _triple(lines, draw(), draw(), draw()) for _ in range(self._config.num_pool_triples)
            ]
        return self._pools[key]


def _triple(lines: tuple[str, ...], *at: float) -> str:
    """Return different lines in random order; each draw is uniform among the remaining lines."""
    assert len(at) == EXAMPLES_PER_PROMPT
    left = list(range(len(lines)))
    return "\n".join(lines[left.pop(int(a * len(left)))] for a in at)
