"""Scores: what is written is read back, also from files of earlier versions."""

import dataclasses
import json
from typing import Any

import pytest

from transforms.core.errors import DAMAGE
from transforms.core.scores import Score, decode_scores, encode_scores

SCORE = Score(
    encoder="untrained",
    dataset="drawings",
    protocol="logistic",
    metric="accuracy",
    value=61.25,
    error=2.0,
    spread=0.5,
    values=[60.75, 61.75],
    chance=10.0,
    num_classes=10,
    num_train=100,
    num_test=50,
    details=[{"strength": 1.0}, {"strength": 10.0}],
)
OLD = {
    "dataset": "drawings",
    "protocol": "knn",
    "metric": "top-1",
    "encoder": "trained",
    "value": 43.75,
}


def test_scores_are_read_as_written() -> None:
    alone = dataclasses.replace(SCORE, encoder="trained", spread=None)
    content = encode_scores([SCORE, alone])
    assert decode_scores(content) == [SCORE, alone]
    assert json.loads(content) == [dataclasses.asdict(SCORE), dataclasses.asdict(alone)]


def test_old_files_lack_fields_and_later_ones_may_have_more() -> None:
    (score,) = decode_scores(json.dumps([{**OLD, "colour": "red"}]).encode())
    assert score == Score("trained", "drawings", "knn", "top-1", 43.75)
    assert (score.chance, score.uncertainty, score.values) == (None, None, [])


@pytest.mark.parametrize(
    "content",
    [
        {"scores": [OLD]},
        [1],
        ["knn"],
        [{"value": 1.0}],
        [{**OLD, "value": None}],
        [{**OLD, "value": "43.75"}],
        [{**OLD, "error": "2"}],
    ],
    ids=str,
)
def test_other_content_is_damage(content: Any) -> None:
    with pytest.raises(DAMAGE):
        decode_scores(json.dumps(content).encode())


def test_the_text_has_the_spread_over_seeds_or_the_error_of_one() -> None:
    assert str(SCORE) == "61.2 ± 0.5"
    assert str(dataclasses.replace(SCORE, spread=None)) == "61.2 ± 2.0"
    assert str(dataclasses.replace(SCORE, spread=None, error=None)) == "61.2"
