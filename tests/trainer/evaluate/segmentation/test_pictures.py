"""Crops of pictures and masks: they fit together, and depend on seed and sample alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.masked_pictures import COLOURS, save_masked
from trainer.evaluate.datasets import load_dataset
from trainer.evaluate.segmentation import pictures as module
from trainer.evaluate.segmentation.pictures import IGNORED, Masked, RandomCrops, WholePictures
from transforms.core.errors import DamagedFileError

FILL = (1, 2, 3)


@pytest.fixture
def masked(tmp_path: Path) -> Masked:
    split = load_dataset("ade20k", save_masked(tmp_path, 20, 4)).train
    return Masked([Path(str(p)) for p in split.pictures], split.masks, 3)


def test_picture_and_mask_are_cropped_alike(
    masked: Masked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_recoloured", lambda pixels, _: pixels)
    crops = RandomCrops(masked, 32, FILL, 0)
    shares, padded = [], 0
    for number in range(40):
        image, labels, lost = crops[number]
        assert (image.shape, labels.shape, lost) == ((3, 32, 32), (32, 32), "")
        colours = torch.tensor(COLOURS).float()
        nearest = (image.permute(1, 2, 0).float()[:, :, None] - colours).norm(dim=-1).argmin(-1)
        known = labels != IGNORED
        shares.append(float((nearest == labels)[known].float().mean()))
        outside = (image == torch.tensor(FILL).view(3, 1, 1)).all(0)
        assert (labels[outside] == IGNORED).all()
        padded += bool(outside.any())
    assert min(shares) > 0.85, "all but the blurred edges"
    assert 3 < padded < 30, "small scales only"


def test_draws_depend_on_seed_and_number_alone(masked: Masked) -> None:
    first, again = RandomCrops(masked, 32, FILL, 0), RandomCrops(masked, 32, FILL, 0)
    second = RandomCrops(masked, 32, FILL, 1)
    torch.manual_seed(5)
    backwards = {number: again[number] for number in reversed(range(25))}
    for number in range(25):
        image, labels, _ = first[number]
        assert torch.equal(image, backwards[number].image)
        assert torch.equal(labels, backwards[number].labels)
    assert any(not torch.equal(first[n].image, second[n].image) for n in range(3))


def test_an_epoch_shows_every_picture_once(masked: Masked) -> None:
    crops, count = RandomCrops(masked, 32, FILL, 0), len(masked.pictures)
    epochs = [[crops.index(e * count + n) for n in range(count)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(count))
    assert epochs[0] != epochs[1]


def test_a_crop_of_one_class_is_drawn_again() -> None:
    labels = np.zeros((40, 200), np.uint8)
    labels[:, 100:] = 1
    for seed in range(20):
        left, top, right, bottom = module._box(labels, 32, np.random.default_rng(seed))
        assert (right - left, bottom - top) == (32, 32)
    both = [
        len(
            np.unique(labels[:, (b := module._box(labels, 32, np.random.default_rng(s)))[0] : b[2]])
        )
        for s in range(60)
    ]
    # Of a single draw, 1 of 10 shows both with a fair share; of ten draws, 2 of 3.
    assert 0.45 < np.mean(np.array(both) == 2) < 0.9


def test_colours_change_within_bounds() -> None:
    pixels = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    found = [module._recoloured(pixels, np.random.default_rng(seed)) for seed in range(50)]
    means = [float(image.float().mean()) for image in found]
    assert 85 < min(means) < 95 and 105 < max(means) < 115  # Brightness by 32 / 255 at most.
    assert any(torch.equal(image, pixels) for image in found), "some keep their colours"


def test_whole_pictures_keep_their_labels(masked: Masked) -> None:
    image, labels, _ = WholePictures(masked, 32, [3])[0]
    assert image.shape == (3, 32, 40), "the shorter side is resized"
    raw = np.asarray(Image.open(masked.masks[3]))
    assert labels.shape == raw.shape == (40, 50)
    assert (labels.numpy()[raw == 0] == IGNORED).all()
    assert (labels.numpy()[raw > 0] == raw[raw > 0] - 1).all()


def test_what_cannot_be_used_is_named(masked: Masked) -> None:
    picture, mask = Path(masked.pictures[0]), masked.masks[1]
    picture.write_bytes(b"broken")
    Image.new("L", (3, 3)).save(mask)
    Image.new("L", (50, 40), 4).save(masked.masks[2])
    masked.masks[3].write_bytes(b"broken")
    for index, words in enumerate(
        (str(picture), "not of the size of its picture", "a class above 3", str(masked.masks[3]))
    ):
        with pytest.raises(DamagedFileError) as raised:
            masked.load(index)
        assert words in str(raised.value)
    image, labels, lost = next(
        sample for sample in (RandomCrops(masked, 32, FILL, 0)[n] for n in range(20)) if sample.lost
    )
    assert (labels == IGNORED).all() and image.shape == (3, 32, 32) and lost
    assert WholePictures(masked, 32, [0])[0].lost == str(picture)
