from collections import Counter

import pytest

from pipelines.captions import CaptionsConfig, prompt_source
from transforms.concepts.balance import balance

MIXED = """
backgrounds: {outside: [lawn, street]}
sources:
- {source: pets, share: 3, backgrounds: outside, concepts: [cat, {name: dog, weight: 2}]}
- {source: places, share: 1, kind: place, concepts: [lake, forest]}
- {source: things, share: 1, concepts: [lamp]}
"""


def test_the_plan_is_what_prompts_turn_out_to_be(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("lists") / "mixed.yaml"
    path.write_text(MIXED)
    config = CaptionsConfig(run="", concepts=str(path), num_captions=10_000, model="none")
    source = prompt_source(config)
    plan = source.plan()
    assert sum(plan.values()) == pytest.approx(1)
    number = 20_000
    drawn: Counter[tuple[str, str, str]] = Counter(
        (prompt.concept.source, prompt.concept.name, prompt.template)
        for prompt in map(source.build, range(number))
    )
    assert set(drawn) <= {group for group, share in plan.items() if share}
    for group, share in plan.items():
        deviation = (number * share * (1 - share)) ** 0.5
        assert abs(drawn[group] - number * share) <= 4.5 * deviation


def test_shares_are_compared_by_source_template_and_concept() -> None:
    counts = [(("pets", "cat", "c"), 6), (("pets", "dog", "c"), 3), (("things", "cat", "c"), 3)]
    plan = {
        ("pets", "cat", "c"): 0.25,
        ("pets", "cat", "c-relation"): 0.25,
        ("places", "lake", "c"): 0.5,
    }
    found = balance(counts, plan)
    assert found["source"] == [
        {"name": "pets", "captions": 9, "share": 0.75, "planned": 0.5},
        {"name": "places", "captions": 0, "share": 0, "planned": 0.5},
        {"name": "things", "captions": 3, "share": 0.25, "planned": 0},
    ]
    assert [(row["name"], row["planned"]) for row in found["template"]] == [
        ("c", 0.75),
        ("c-relation", 0.25),
    ]
    cats = [row for row in found["concept"] if row["name"] == "cat"]
    assert {row["source"]: row["captions"] for row in cats} == {"pets": 6, "things": 3}


def test_without_a_plan_shares_are_still_counted() -> None:
    found = balance([(("mine", "", "c"), 4)], {})
    assert found["source"] == [{"name": "mine", "captions": 4, "share": 1, "planned": None}]
