from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipelines.tiny_sd import score
from pipelines.tiny_sd.__main__ import MODEL_FOLDER
from pipelines.tiny_sd.autoencoder import to_tensor
from pipelines.tiny_sd.captions import load_frames
from pipelines.tiny_sd.drawings import load_concepts
from pipelines.tiny_sd.judge import Judge


def test_free_captions_cover_the_concepts_and_are_not_trained_on() -> None:
    names = [c.name for c in load_concepts()]
    texts, truth = score.load_free_captions(names)
    assert set(truth) == set(range(len(names)))
    frames = {f for frames in load_frames().values() for f in frames}
    for text, index in zip(texts, truth, strict=True):
        assert names[index] in text.lower()
        assert text.replace(names[index], "{c}") not in frames


def test_pixel_distance_is_the_mean_within_groups() -> None:
    levels = np.array([0, 0, 255, 255, 51, 51, 51, 51], np.uint8)
    pictures = np.broadcast_to(levels[:, None, None, None], (8, 4, 4, 3))
    # First group: 4 of 6 pairs differ by the full range; second group: none differ.
    assert score.pixel_distance(pictures) == pytest.approx(4 / 6 / 2)


def test_feature_distance_is_the_squared_chord_between_unit_vectors() -> None:
    torch.manual_seed(0)
    judge = Judge(2).eval()
    pictures = np.random.default_rng(0).integers(256, size=(4, 64, 64, 3), dtype=np.uint8)
    assert score.feature_distance(judge, np.repeat(pictures[:1], 4, axis=0)) == 0
    wanted = []
    with torch.no_grad():
        features = to_tensor(pictures)
        for stage in judge.body:
            features = stage(features)
            for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
                cosine = torch.cosine_similarity(features[i], features[j], dim=0)
                dark = (features[i].norm(dim=0) == 0).float() + (features[j].norm(dim=0) == 0)
                wanted.append((2 - 2 * cosine - dark).mean().item())
    assert score.feature_distance(judge, pictures) == pytest.approx(np.mean(wanted), rel=1e-4)


def test_a_contact_sheet_fills_rows_from_the_left(tmp_path: Path) -> None:
    pictures = np.zeros((3 * score.SEEDS, 16, 16, 3), np.uint8)
    score.contact_sheet(pictures, ["cat", "dog", "cow"], tmp_path / "sheet.png", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    middle = sheet.shape[1] // 2
    assert not sheet[-16:, : score.SEEDS * 16].any()
    assert (sheet[-16:, middle:] == 255).all()
    assert not sheet[14:30, middle : middle + score.SEEDS * 16].any()


def test_the_card_shows_what_the_score_step_wrote() -> None:
    scores = yaml.safe_load((MODEL_FOLDER / score.SCORES_FILE).read_text())
    assert score.table(scores) in (MODEL_FOLDER / "README.md").read_text()


def test_the_folder_is_small_and_paints_two_pictures_from_two_seeds() -> None:
    torch.set_num_threads(1)
    assert sum(p.stat().st_size for p in MODEL_FOLDER.rglob("*")) < 20e6
    one, two = score.paint(score.load_pipeline(MODEL_FOLDER), ["a cat", "a cat"])
    assert one.shape == (64, 64, 3)
    assert np.abs(one.astype(int) - two).mean() > 5
