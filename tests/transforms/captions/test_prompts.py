import itertools
import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.prompts import CONCEPTS, EXAMPLES, RELATIONS, chi_square
from transforms.captions.examples import Examples
from transforms.captions.prompts import INSTRUCTIONS, PromptBuilder, PromptConfig, TemplateMix
from transforms.core.errors import ConfigError
from transforms.core.records import Concept, Prompt

SMALL = Examples({group: EXAMPLES.lines[group][:4] for group in EXAMPLES.lines})


def builder(
    config: PromptConfig = PromptConfig(),  # noqa: B008
    seed: int = 0,
    span: int = 100,
    examples: Examples = EXAMPLES,
    concepts: tuple[Concept, ...] = CONCEPTS,
) -> PromptBuilder:
    return PromptBuilder(concepts, examples, RELATIONS, config, seed, span)


def many(number: int, **arguments: object) -> list[Prompt]:
    make = builder(**arguments)  # type: ignore[arg-type]
    return [make.build(ordinal) for ordinal in range(number)]


def shown(prompt: Prompt) -> tuple[str, ...]:
    """Return the example lines of a prompt."""
    return tuple(prompt.text.splitlines()[1:-1])


@given(st.integers(0, 2**40), st.integers(0, 2**63 - 1), st.booleans())
def test_a_prompt_depends_on_seed_and_ordinal_alone(ordinal: int, seed: int, shared: bool) -> None:
    config = PromptConfig(shared_examples=shared)
    one, other = builder(config, seed), builder(config, seed)
    other.build(0)
    other.build(ordinal + 7)
    assert one.build(ordinal) == other.build(ordinal)
    assert pickle.loads(pickle.dumps(other)).build(ordinal) == one.build(ordinal)


def test_seeds_and_ordinals_give_other_prompts_and_sampling_seeds() -> None:
    prompts = many(500) + many(500, seed=1)
    assert len({prompt.seed for prompt in prompts}) == 1000
    assert all(0 <= prompt.seed < 2**63 for prompt in prompts)
    assert [p.text for p in prompts[:500]] != [p.text for p in prompts[500:]]


@pytest.mark.parametrize("shared", [True, False])
def test_a_prompt_is_an_instruction_three_examples_and_the_query(shared: bool) -> None:
    groups = {"object": "objects", "place": "places", "texture": "textures"}
    for prompt in many(300, config=PromptConfig(shared_examples=shared)):
        first, *examples, query = prompt.text.split("\n")
        assert first == INSTRUCTIONS[prompt.template]
        group = groups[prompt.concept.kind]
        if prompt.template == "c-background":
            group = "background"
            assert prompt.background in prompt.concept.backgrounds
            assert query == f"{prompt.concept.name}, {prompt.background} =>"
        elif prompt.template == "c-relation":
            group = "relation"
            assert prompt.relation in RELATIONS
            assert query == f"{prompt.concept.name}, {prompt.relation} =>"
        else:
            assert query == f"{prompt.concept.name} =>"
        assert len(set(examples)) == 3
        assert set(examples) <= set(EXAMPLES.lines[group])  # type: ignore[index]
        assert (prompt.background is None) == (prompt.template != "c-background")
        assert (prompt.relation is None) == (prompt.template != "c-relation")


def test_concepts_and_templates_are_drawn_by_their_shares() -> None:
    prompts = many(20_000)
    concepts = Counter(prompt.concept.name for prompt in prompts)
    names = [c.name for c in CONCEPTS]
    assert chi_square([concepts[n] for n in names], [c.weight for c in CONCEPTS]) < 16.3  # p 0.001
    of_fox = Counter(p.template for p in prompts if p.concept.name == "fox")
    counts = [of_fox["c"], of_fox["c-background"], of_fox["c-relation"]]
    assert chi_square(counts, [0.44, 0.45, 0.11]) < 13.8
    of_kettle = Counter(p.template for p in prompts if p.concept.name == "kettle")
    assert chi_square([of_kettle["c"], of_kettle["c-relation"]], [0.8, 0.2]) < 10.8
    others = {p.template for p in prompts if p.concept.kind != "object"}
    assert others == {"c"}
    places = Counter(p.background for p in prompts if p.background)
    assert chi_square(list(places.values()), [1 / 3] * 3) < 13.8


def test_shared_pools_leave_the_examples_of_a_prompt_as_independent_draws_have_them() -> None:
    # With one prompt per shard, triples are uniform over all ordered triples.
    triples = list(itertools.permutations(SMALL.lines["objects"], 3))
    concepts = CONCEPTS[1:2]
    mix = TemplateMix(background=0, relation=0)
    for shared in (True, False):
        config = PromptConfig(mix=mix, shared_examples=shared, num_pool_triples=2)
        make = builder(config, span=10, examples=SMALL, concepts=concepts)
        seen = Counter(shown(make.build(10 * shard)) for shard in range(4_800))
        assert chi_square([seen[t] for t in triples], [1 / 24] * 24) < 49.7  # p 0.001


def test_a_shard_uses_few_triples_only_with_shared_pools() -> None:
    mix = TemplateMix(background=0, relation=0)
    concepts = CONCEPTS[1:2]
    for shared, expected in ((True, 8), (False, 90)):
        config = PromptConfig(mix=mix, shared_examples=shared, num_pool_triples=8)
        prompts = many(100, config=config, concepts=concepts)
        different = len({shown(prompt) for prompt in prompts})
        assert different <= 8 if shared else different >= expected


def test_only_a_concept_without_backgrounds_falls_back_to_the_plain_template() -> None:
    config = PromptConfig(mix=TemplateMix(c=0, background=1, relation=0))
    for prompt in many(200, config=config, concepts=CONCEPTS[:2]):
        assert prompt.template == ("c-background" if prompt.concept.backgrounds else "c")


def test_digests_change_with_their_lists() -> None:
    other = builder(concepts=(*CONCEPTS[:3], Concept("marble", "textures", "texture", 0.1, ("x",))))
    changed = {k for k, v in builder().digests().items() if other.digests()[k] != v}
    assert changed == {"concepts_hash"}
    assert (
        builder(examples=SMALL).digests()["examples_hash"] != builder().digests()["examples_hash"]
    )


def test_impossible_settings() -> None:
    with pytest.raises(ConfigError, match="no concepts"):
        builder(concepts=())
    with pytest.raises(ValueError, match="at least one template"):
        TemplateMix(c=0, background=0, relation=0)
