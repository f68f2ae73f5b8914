from pathlib import Path

import pytest
import yaml

from transforms.concepts.imagenet import (
    MAX_NAME_LENGTH,
    imagenet_classes,
    load_backgrounds,
    load_facts,
)
from transforms.concepts.lists import load_concepts, read_list
from transforms.core.errors import ConfigError

TENCH, WHITE_SHARK, BIRD_CRANE, MACHINE_CRANE = "n01440764", "n01484850", "n02012849", "n03126707"


def groups(tmp_path: Path, **classes: list[str]) -> str:
    path = tmp_path / "groups.yaml"
    entries = [
        {"name": name, "ancestor": name, "places": [f"{name} 1", f"{name} 2"], "classes": listed}
        for name, listed in classes.items()
    ]
    path.write_text(yaml.safe_dump({"groups": entries}))
    return str(path)


def test_the_thousand_classes_have_a_thousand_short_names() -> None:
    names = {known.synset: known.name for known in imagenet_classes("imagenet-1k")}
    assert len(names) == len({name.casefold() for name in names.values()}) == 1000
    assert names[TENCH] == "tench", "and not 'tench, Tinca tinca'"
    assert not [name for name in names.values() if "," in name or "_" in name]
    assert names[BIRD_CRANE] == "crane (large long-necked wading bird of marshes)"
    assert names[MACHINE_CRANE] == "crane (lifts and moves heavy objects)"
    twice = {name.partition(" (")[0] for name in names.values() if "(" in name}
    assert twice == {"crane", "Cardigan", "cardigan", "maillot", "sunglass", "sunglasses"}


def test_the_12k_classes_have_different_names_and_no_people() -> None:
    classes = imagenet_classes("imagenet-12k")
    names = [known.name for known in classes]
    assert len({name.casefold() for name in names}) == len(names) > 10_800
    assert max(map(len, names)) <= MAX_NAME_LENGTH
    assert not [name for name in names if name != name.strip() or "  " in name or "()" in name]
    assert {"violist", "tourist", "waiter"}.isdisjoint(names)
    assert {"violin", "hotel", "mandarin duck"} <= set(names)


def test_places_go_by_group_and_further_members(tmp_path: Path) -> None:
    path = groups(tmp_path, lake=[TENCH], ocean=[WHITE_SHARK, BIRD_CRANE])
    members = tmp_path / "members.tsv"
    members.write_text(f"# nearest relatives\nn01441425\tlake\n{TENCH}\tocean\n")
    found = load_backgrounds(path, str(members))
    assert found[TENCH] == found["n01441425"] == ("lake 1", "lake 2")
    assert found[WHITE_SHARK] == found[BIRD_CRANE] == ("ocean 1", "ocean 2")
    assert len(load_backgrounds(path, None)) == 3
    members.write_text("n01441425\tdesert\n")
    with pytest.raises(ConfigError, match="n01441425 is in group 'desert', which is not defined"):
        load_backgrounds(path, str(members))


def test_a_source_of_timm_gets_groups_hypernyms_and_a_fallback(tmp_path: Path) -> None:
    groups(tmp_path, lake=[TENCH])
    (tmp_path / "general.txt").write_text("kitchen\nstreet\n")
    (tmp_path / "hypernyms.tsv").write_text(f"# WordNet\n{TENCH}\tcyprinid\n")
    path = tmp_path / "list.yaml"
    path.write_text(
        "sources: [{source: imagenet-1k, timm: imagenet-1k, background_groups: groups.yaml, "
        "backgrounds: general.txt, hypernyms: hypernyms.tsv}]"
    )
    concepts = load_concepts(str(path))
    assert len(concepts) == 1000
    assert (concepts[0].name, concepts[0].hypernym) == ("tench", "cyprinid")
    assert concepts[0].backgrounds == ("lake 1", "lake 2")
    assert {c.backgrounds for c in concepts[1:]} == {("kitchen", "street")}
    assert {c.hypernym for c in concepts[1:]} == {None}


def test_a_class_of_both_subsets_is_kept_once_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(
        "sources: [{source: one, timm: imagenet-1k}, {source: more, timm: imagenet-12k}]"
    )
    found = read_list(str(path))
    keys = [(c.kind, c.name.casefold()) for c in found.concepts]
    assert len(set(keys)) == len(keys) > 9_800
    assert sum(c.source == "one" for c in found.concepts) == 1000
    assert {d.kept_in for d in found.duplicates} == {"one"}
    # 993 classes are in both, three of them people.
    assert len(found.duplicates) >= 990


@pytest.mark.parametrize("line", ["n01440764 cyprinid", "n01440764\t"])
def test_wrong_lines_of_facts_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hypernyms.tsv"
    path.write_text(f"# WordNet\n{line}\n")
    with pytest.raises(ConfigError, match=r"hypernyms\.tsv, line 2"):
        load_facts(str(path))


def test_a_class_in_two_groups_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"group 'ocean' names {TENCH} a second time"):
        load_backgrounds(groups(tmp_path, lake=[TENCH], ocean=[TENCH]), None)
