from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.tiny_sd import score
from pipelines.tiny_sd.captions import load_frames
from pipelines.tiny_sd.drawings import load_concepts


def test_free_captions_cover_the_concepts_and_are_not_trained_on() -> None:
    names = [c.name for c in load_concepts()]
    texts, truth = score.load_free_captions(names)
    assert set(truth) == set(range(len(names)))
    frames = {f for frames in load_frames().values() for f in frames}
    for text, index in zip(texts, truth, strict=True):
        assert names[index] in text.lower()
        assert text.replace(names[index], "{c}") not in frames


def test_diversity_is_the_mean_distance_within_groups() -> None:
    levels = np.array([0, 0, 255, 255, 51, 51, 51, 51], np.uint8)
    pictures = np.broadcast_to(levels[:, None, None, None], (8, 4, 4, 3))
    # First group: 4 of 6 pairs differ by the full range; second group: none differ.
    assert score.diversity(pictures) == pytest.approx(4 / 6 / 2)


def test_a_contact_sheet_fills_rows_from_the_left(tmp_path: Path) -> None:
    pictures = np.zeros((3, 4, 4, 3), np.uint8)
    score.contact_sheet(pictures, tmp_path / "sheet.png", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (8, 8, 3)
    assert not sheet[:4].any() and not sheet[4:, :4].any()
    assert (sheet[4:, 4:] == 255).all()
