from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.tiny_sd import judge as judging
from pipelines.tiny_sd.scenes import BACKGROUNDS
from tests.support.tiny_sd import make_composer


def test_the_judge_learns_to_tell_two_concepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(judging, "NUM_STEPS", 40)
    monkeypatch.setattr(judging, "BATCH_SIZE", 16)
    composer = make_composer()
    judge = judging.train_judge(composer, tmp_path / "judge.pt")
    batch = composer.sample(64, np.random.default_rng(1))
    concepts, backgrounds = judging.name(judge, batch.pictures)
    assert (concepts[:, 0] == batch.concepts).mean() > 0.8
    assert (np.sort(backgrounds, axis=1) == np.arange(len(BACKGROUNDS))).all()
    monkeypatch.setattr(composer, "sample", None)  # A finished judge is loaded, not trained.
    again = judging.train_judge(composer, tmp_path / "judge.pt")
    assert (judging.name(again, batch.pictures)[0] == concepts).all()
