"""Views of pictures: pure draws, torchvision's test crop, the order of a training, bad files."""

import io

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from trainer.evaluate.features import load_square
from trainer.evaluate.views import Centre, Order, RandomCrop, batches, chunks


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def ramp(side: int = 64) -> np.ndarray:
    """Return a picture that grows brighter from left to right, and redder from top to bottom."""
    across = np.tile(np.linspace(0, 250, side), (side, 1))
    return np.stack([across.T, across, across], axis=2).astype(np.uint8)


def test_a_random_crop_depends_on_seed_epoch_and_picture_alone() -> None:
    picture, keys = noise(40, 60), [(epoch, index) for epoch in range(3) for index in range(4)]
    crops = [np.asarray(RandomCrop(24, 7)(picture, key)) for key in keys]
    again = [np.asarray(RandomCrop(24, 7)(picture, key)) for key in reversed(keys)][::-1]
    assert all(np.array_equal(*pair) for pair in zip(crops, again, strict=True))
    other_seed = [np.asarray(RandomCrop(24, 8)(picture, key)) for key in keys]
    assert len({crop.tobytes() for crop in (*crops, *other_seed)}) == 2 * len(keys)


def test_random_crops_cover_torchvisions_areas_and_half_are_mirrored() -> None:
    shares, mirrored = [], []
    for index in range(300):
        crop = np.asarray(RandomCrop(32, 0)(ramp(), (0, index))).astype(float)
        assert crop.shape == (32, 32, 3)
        down, across = crop[-1, :, 0].mean() - crop[0, :, 0].mean(), crop[:, :, 1].mean(axis=0)
        mirrored.append(across[-1] < across[0])
        # Brightness spans 250 over the whole picture, and a share of it over a part.
        shares.append(abs(across[-1] - across[0]) * down / 250**2)
    assert 0.4 < np.mean(mirrored) < 0.6
    assert np.mean(shares) == pytest.approx((0.08 + 1) / 2, abs=0.08)
    assert min(shares) < 0.15 and max(shares) > 0.85


def test_the_test_view_is_torchvisions() -> None:
    steps = [v2.Resize(32, v2.InterpolationMode.BICUBIC), v2.CenterCrop(28)]
    for picture in (noise(50, 75), noise(80, 40), noise(24, 24)):
        expected = np.asarray(v2.Compose(steps)(Image.fromarray(picture)))
        assert np.array_equal(np.asarray(Centre(28, 32)(picture, (0, 0))), expected)
        square = np.asarray(load_square(picture, 32))
        assert np.array_equal(np.asarray(load_square(picture, 32, 32)), square)


def test_an_epoch_takes_each_picture_at_most_once_and_in_another_order() -> None:
    order = Order(num_pictures=23, batch_size=5, num_epochs=3, seed=1)
    assert (order.batch, order.num_steps) == (5, 12)
    steps = [order.keys(step) for step in range(12)]
    for epoch in range(3):
        keys = [key for keys in steps[epoch * 4 : epoch * 4 + 4] for key in keys]
        assert len(set(keys)) == 20
        assert {key[0] for key in keys} == {epoch}
        assert {key[1] for key in keys} <= set(range(23))
    taken = [tuple(index for _, index in keys) for keys in steps]
    assert len(set(taken)) == 12
    assert Order(23, 5, 3, seed=2).keys(0) != steps[0]
    assert [order.keys(step) for step in (11, 0, 5)] == [steps[11], steps[0], steps[5]]


def test_fewer_pictures_than_a_batch_are_one_batch() -> None:
    order = Order(num_pictures=3, batch_size=1024, num_epochs=2, seed=0)
    assert (order.batch, order.num_steps) == (3, 2)
    assert sorted(order.keys(1)) == [(1, 0), (1, 1), (1, 2)]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def test_unreadable_pictures_are_named_and_workers_change_nothing() -> None:
    pictures = [png(noise(20, 30, seed)) for seed in range(6)]
    pictures[2] = b"not a picture"
    pictures[5] = pictures[5][:60]
    keys = list(chunks([(4, index) for index in (5, 0, 2, 1, 3)], 2))
    assert [len(some) for some in keys] == [2, 2, 1]
    view = RandomCrop(8, 0)
    found, by_workers = (
        list(batches(pictures, view, keys, num_workers=workers, pin_memory=False))
        for workers in (0, 1)
    )
    assert [batch.indices for batch in found] == [[0], [1], [3]]
    assert [batch.unreadable for batch in found] == [[5], [2], []]
    assert found[0].images.shape == (1, 3, 8, 8)
    expected = np.asarray(view(pictures[1], (4, 1))).transpose(2, 0, 1)
    assert np.array_equal(found[1].images[0].numpy(), expected)
    for batch, other in zip(found, by_workers, strict=True):
        assert batch.indices == other.indices and batch.unreadable == other.unreadable
        assert np.array_equal(batch.images, other.images)
    (none,) = batches(pictures, view, [[(0, 2)]], num_workers=0, pin_memory=False)
    assert (none.indices, none.unreadable) == ([], [2])
