"""Faults of the settings and plans of a run; see `remedy_faults`."""

import json

from tests.support.remedies import Scene
from tests.support.remedy_faults import IMAGE, fails, garble, halve
from transforms.core import storage


def settings_are_damaged_before_report(scene: Scene) -> None:
    scene.change("images/run.yaml", lambda _: b"[")
    fails(scene, "report")


def settings_are_damaged(scene: Scene) -> None:
    scene.change("images/run.yaml", lambda _: b"fields: 3")
    fails(scene, "images")


def a_plan_is_damaged_before_report(scene: Scene) -> None:
    scene.change("images/plan.json", lambda _: b"[]")
    fails(scene, "report")


def a_plan_is_damaged(scene: Scene) -> None:
    scene.change("images/plan.json", lambda plan: plan.replace(b": 8,", b': "8",'))
    fails(scene, "verify")


def a_plan_of_curated_captions_is_damaged(scene: Scene) -> None:
    scene.change("captions/plan.json", halve)
    fails(scene, "verify")


def _earlier_plan(plan: bytes) -> bytes:
    """Return a plan without its checksum, as earlier versions wrote it."""
    values = json.loads(plan)
    del values["plan_sha256"]
    return json.dumps(values, indent=1, sort_keys=True).encode()


def a_plan_has_other_numbers(scene: Scene) -> None:
    scene.change("captions/plan.json", lambda plan: _earlier_plan(plan).replace(b": 16,", b": 17,"))
    fails(scene, "verify", "repair=true")


def a_plan_says_other_things(scene: Scene) -> None:
    scene.change(
        "images/plan.json", lambda plan: _earlier_plan(plan).replace(b"generator", b"generatos")
    )
    fails(scene, "verify", "repair=true")


def an_index_is_garbled_and_its_plan_is_lost(scene: Scene) -> None:
    scene.change("captions/index.parquet", garble)
    scene.delete("captions/plan.json", IMAGE)
    fails(scene, "images")
    scene.person.heal()
    assert scene.person.do("images") == 0


def an_index_is_lost_and_its_plan_is_damaged(scene: Scene) -> None:
    scene.change("images/plan.json", lambda plan: plan.replace(b'": "4"', b'": "5"'))
    scene.delete("images/index.parquet")
    fails(scene, "verify")


def plans_and_settings_are_lost_before_verify(scene: Scene) -> None:
    scene.delete("captions-raw/plan.json", "captions/plan.json", "captions/run.yaml")
    scene.delete("images/run.yaml")
    fails(scene, "verify")


def a_bit_of_the_settings_is_flipped(scene: Scene) -> None:
    scene.change("images/run.yaml", lambda text: text.replace(b"num_steps: 1", b"num_steps: 3"))
    fails(scene, "images")


def the_config_of_a_run_is_damaged_before_repair(scene: Scene) -> None:
    shards = storage.list_times(scene.url("images/shards"))
    scene.change("images/run.yaml", lambda text: text.replace(b"per_shard: 2", b"per_shard: 3"))
    fails(scene, "verify", "repair=true")
    assert storage.list_times(scene.url("images/shards")) == shards
