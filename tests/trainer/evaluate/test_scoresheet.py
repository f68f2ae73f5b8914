"""The score sheet: files, tables, fingerprints."""

import dataclasses
import json
from typing import Any

from trainer.evaluate import scoresheet
from trainer.evaluate.scoresheet import TaskScores
from transforms.core import storage
from transforms.core.scores import Score


def row(encoder: str, value: float, dataset: str = "drawings", protocol: str = "knn") -> Score:
    spread = 0.5 if encoder == "untrained" else None
    return Score(
        encoder=encoder,
        dataset=dataset,
        protocol=protocol,
        metric="accuracy",
        value=value,
        error=2.0,
        spread=spread,
        values=[value],
        chance=10.0,
        num_classes=10,
        num_train=100,
        num_test=50,
        details=[{}],
    )


ROWS = [row("trained", 61.24), row("untrained", 30.0), row("pixels", 25.0)]


def test_task_files_come_back_as_written(any_storage: str) -> None:
    scores = TaskScores("knn", "drawings", "c0ffee", "abc", ROWS)
    assert scoresheet.load(any_storage, "knn", "drawings") is None
    scoresheet.save(any_storage, scores)
    assert scoresheet.load(any_storage, "knn", "drawings") == scores


def test_a_task_file_of_another_version_counts_as_missing(any_storage: str) -> None:
    for content in (b"{", b"[]", b'{"rows": [{"colour": 1}]}', b'{"rows": []}'):
        storage.replace_bytes(content, storage.join(any_storage, "knn-drawings.json"))
        assert scoresheet.load(any_storage, "knn", "drawings") is None


def test_sheet_leaves_out_other_checkpoints(any_storage: str) -> None:
    other = row("trained", 1.0, dataset="pets")
    scoresheet.save(any_storage, TaskScores("knn", "drawings", "new", "1", ROWS))
    scoresheet.save(any_storage, TaskScores("knn", "pets", "new", "3", [other]))
    scoresheet.save(any_storage, TaskScores("logistic", "drawings", "old", "2", [other]))
    assert scoresheet.publish(any_storage, ("knn", "logistic"), "new") == [*ROWS, other]
    listed = json.loads(storage.read_bytes(storage.join(any_storage, "scores.json")))
    assert listed == [dataclasses.asdict(row) for row in [*ROWS, other]]
    assert b"61.2" in storage.read_bytes(storage.join(any_storage, "scores.md"))


def test_a_score_without_chance_has_an_empty_cell() -> None:
    (line,) = scoresheet.table([dataclasses.replace(ROWS[0], chance=None)])
    assert line == ["drawings", "knn", "accuracy", "", "", "", "61.2 ± 2.0"]


def test_table_has_a_column_per_encoder() -> None:
    (line,) = scoresheet.table(ROWS)
    assert dict(zip(scoresheet.TITLES, line, strict=True)) == {
        "data set": "drawings",
        "protocol": "knn",
        "metric": "accuracy",
        "chance": "10.0",
        "pixels": "25.0 ± 2.0",
        "untrained": "30.0 ± 0.5",
        "trained": "61.2 ± 2.0",
    }
    lines = scoresheet.plain(ROWS).splitlines()
    assert lines[0].index("trained", lines[0].index("untrained") + 9) == lines[1].index("61.2")


def test_lines_of_a_protocol_are_in_the_order_of_its_scores() -> None:
    shots = [
        dataclasses.replace(own, metric=f"accuracy, {number} shots", protocol="fewshot")
        for number in (2, 10)
        for own in ROWS
    ]
    pets = row("trained", 1.0, dataset="pets")
    expected = [("fewshot", "accuracy, 2 shots"), ("fewshot", "accuracy, 10 shots")]
    expected += [("knn", "accuracy")] * 2
    assert [(line[1], line[2]) for line in scoresheet.table([pets, *ROWS, *shots])] == expected
    lines = scoresheet.made([pets, *ROWS, *shots])
    assert list(dict.fromkeys((line[1], line[2]) for line in lines)) == expected[:3]


def test_markdown_shows_the_papers_scores_for_the_papers_sets() -> None:
    assert "paper" not in scoresheet.markdown(ROWS)
    text = scoresheet.markdown([row("trained", 50.0, dataset="pets")])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    line = ["pets", "logistic regression", "mean per-class accuracy", "SynCLR B/16", "93.6"]
    assert line in cells


def test_fingerprint_depends_on_every_part() -> None:
    parts: list[Any] = ["knn", {"knn.num_neighbours": 20}, "checkpoint", "id of drawings", 1]
    changed: list[Any] = ["logistic", {"knn.num_neighbours": 5}, "other", "id of others", 2]
    found = {scoresheet.fingerprint(*parts)}
    for position, value in enumerate(changed):
        other = parts.copy()
        other[position] = value
        found.add(scoresheet.fingerprint(*other))
    assert len(found) == 6
