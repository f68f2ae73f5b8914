"""The soak can run, and it can fail."""

import json
import random
import sys
from pathlib import Path

import pytest

import benchmarks.soak.__main__ as soak
from benchmarks.soak.commands import Ended
from benchmarks.soak.damage import KINDS, damage
from benchmarks.soak.person import AnotherRunError, GaveUpError, Person
from benchmarks.soak.remedies import Step, steps
from benchmarks.soak.rounds import Kind, Round, Scene, digests
from transforms.core import storage

FILES = {
    "images/shards/000/images-000000.tar": b"a shard",
    "images/commits/000/images-000000.json": b"a commit record",
    "images/index.parquet": b"an index",
    "captions/curation.json": b"a report",
}


def write_run(run: Path) -> None:
    for name, content in FILES.items():
        storage.publish_bytes(content, f"{run}/{name}")


def ended(said: str, code: int = 1) -> Ended:
    return Ended(("pipelines", "images"), code, said, (), Path("log"), False, 0, False)


def person(tmp_path: Path) -> Person:
    return Person(str(tmp_path / "run"), {}, {}, tmp_path / "logs")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("processes")
def test_a_short_soak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--captions=words", "--rounds=1", f"--out={tmp_path}", "--minutes=10"]
    monkeypatch.setattr(sys, "argv", ["soak", *arguments])
    assert soak.main() == 0, capsys.readouterr().out
    (lines,) = tmp_path.glob("*/rounds.jsonl")
    done = json.loads(lines.read_text())
    assert done["starts"] >= 7, "two workers of each stage, and verify"
    assert done["faults"]
    assert not list(tmp_path.glob("*/round-*")), "nothing is left of a round"


def test_a_soak_that_finds_something_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Round(1, 0, "local", "words", problems=[{"kind": "loss", "what": "x", "log": ""}])
    monkeypatch.setattr(soak, "run_round", lambda *arguments: wrong)
    monkeypatch.setattr(soak, "undisturbed", lambda kind, folder: folder.mkdir())
    arguments = ["--captions=words", "--rounds=2", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["soak", *arguments])
    assert soak.main() == 1
    said = capsys.readouterr().out
    assert "WRONG: loss: x" in said
    assert ["problem", "loss", "2"] in [line.split() for line in said.splitlines()]


def test_the_comparison_finds_what_is_lost_and_what_differs(tmp_path: Path) -> None:
    write_run(tmp_path / "undisturbed")
    kind = Kind("words", {}, False, digests(str(tmp_path / "undisturbed")))
    assert set(kind.digests) == {"images/shards/000/images-000000.tar", "images/index.parquet"}
    scene = Scene(kind, tmp_path / "round", 1, None, None)
    try:
        write_run(Path(scene.around.run))
        assert scene.compare() == []
        storage.delete(f"{scene.around.run}/images/index.parquet")
        storage.replace_bytes(b"a shar?", f"{scene.around.run}/images/shards/000/images-000000.tar")
        assert [problem.kind for problem in scene.compare()] == ["loss", "bytes"]
    finally:
        scene.close()
    assert not (tmp_path / "round").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_damage_changes_one_file(kind: str, tmp_path: Path) -> None:
    seeds = iter(range(1000))
    while True:
        run = tmp_path / str(next(seeds))
        write_run(run)
        done = damage(str(run), random.Random(run.name))
        assert done is not None
        if done.startswith(kind):
            break
    left = {name: storage.read_bytes(f"{run}/{name}") for name in storage.list_files(str(run))}
    changed = {name for name in FILES if left.get(name) != FILES[name]}
    assert len(changed) == 1
    assert "captions/curation.json" not in changed


def test_the_steps_of_a_remedy_are_in_the_order_of_the_message() -> None:
    message = (
        "/r/images/commits/000/a.json is damaged; delete it, run `python -m pipelines verify /r "
        "repair=true`, which deletes them, run captions, then curate again, then verify"
    )
    assert list(steps(message)) == [
        Step("delete", path="/r/images/commits/000/a.json"),
        Step("run", ("verify", "/r", "repair=true")),
        Step("run", ("captions",)),
        Step("run", ("curate",)),
        Step("verify"),
    ]
    settings = "run `python -m pipelines captions` with the same settings, then this command again"
    assert list(steps(settings)) == [
        Step("run", ("captions",), settings="the same settings"),
        Step("same"),
    ]
    (step,) = steps("run.yaml /r/images/run.yaml is of another run: delete that folder")
    assert step == Step("delete", path="/r/images")
    (step,) = steps("delete /r/images/retry-1 and the retries after it")
    assert step == Step("delete", path="/r/images/retry-1", and_later=True)


def test_a_message_that_says_nothing_to_do_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(GaveUpError, match="nothing to do: it broke"):
        person(tmp_path).heal(ended("it broke"))


def test_messages_that_lead_in_a_circle_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ended("it broke; run the same command again")
    monkeypatch.setattr(Person, "do", lambda *arguments: said)
    with pytest.raises(GaveUpError, match="in a circle: it broke"):
        person(tmp_path).heal(said)


def test_a_message_must_not_delete_what_is_not_in_the_run(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with pytest.raises(GaveUpError, match="not in the run"):
        person(tmp_path).heal(ended(f"{tmp_path}/other is damaged; delete it"))
    assert (tmp_path / "other").exists()


def test_lost_raw_captions_cost_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        "verify repair=true": "1 shards are damaged; run captions again, then verify",
        "captions": "a shard is missing: either keep /r/captions, which is all that later stages "
        "read, and do not run captions again",
        "verify stages=[captions,images]": "",
    }

    def do(operator: Person, *words: str) -> Ended:
        return ended(said[" ".join(words)], code=1 if said[" ".join(words)] else 0)

    monkeypatch.setattr(Person, "do", do)
    operator = person(tmp_path)
    repair = f"run `python -m pipelines verify {operator.run} repair=true`, then run captions again"
    operator.heal(ended(f"{repair}, then verify"))
    assert operator.keeps
    assert operator.verify().code == 0


def test_when_nothing_can_be_kept_another_run_is_made(tmp_path: Path) -> None:
    keep = "3 shards are missing: either keep /r/captions, which is all that later stages read"
    operator = person(tmp_path)
    kept = ended(keep)
    assert operator.heal(kept) is operator.heal(kept) is kept, "it needs no other remedy"
    assert operator.keeps
    with pytest.raises(AnotherRunError):
        operator.heal(ended(keep))
