import io
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.block_engine import block_spec, blocks, paint_plan
from tests.support.captions import captions_of, make_captions, write_captions
from transforms.core.counters import Tally
from transforms.core.records import Caption, Failure, ImageSet
from transforms.core.seeding import caption_id
from transforms.images.caption_reader import CaptionRows
from transforms.images.encoding import EncodingConfig, encode
from transforms.images.producer import ImageEngineError, ImagesProducer


def producer(captions: list[Caption], batch_size: int = 8, **changes: object) -> ImagesProducer:
    """Return a producer for one caption shard, with a loaded model."""
    made = ImagesProducer(_rows(captions), block_spec(batch_size), paint_plan(**changes))
    made.setup()
    return made


def _rows(captions: list[Caption]) -> CaptionRows:
    url = f"memory://{caption_id('|'.join(c.text for c in captions))}/captions"
    write_captions(url, [captions])
    return CaptionRows.open(url)


def shows(image: bytes, text: str, seed: int) -> bool:
    """Return whether a stored image is the picture of this caption and seed."""
    pixels = np.asarray(Image.open(io.BytesIO(image)))
    return bool(np.array_equal(pixels > 127, blocks(text, seed) > 127))


@settings(max_examples=25, deadline=None)
@given(
    number=st.integers(1, 15),
    per_shard=st.integers(1, 7),
    per_caption=st.integers(1, 5),
    batch_size=st.integers(1, 9),
)
def test_every_image_stands_beside_the_caption_it_was_painted_for(
    number: int, per_shard: int, per_caption: int, batch_size: int
) -> None:
    captions = make_captions(number)
    made = producer(
        captions, batch_size, captions_per_shard=per_shard, images_per_caption=per_caption
    )
    seen: list[str] = []
    for shard in range(-(-number // per_shard)):
        produced = list(made.produce(shard, Tally()))
        assert [r.caption.caption_id for r in produced if isinstance(r, ImageSet)] == (
            made.record_ids(shard)
        )
        for image_set in produced:
            assert isinstance(image_set, ImageSet)
            assert len(set(image_set.seeds)) == len(image_set.images) == per_caption
            for image, seed in zip(image_set.images, image_set.seeds, strict=True):
                assert shows(image, image_set.caption.text, seed)
            seen.append(image_set.caption.text)
    assert seen == [caption.text for caption in captions]


def test_the_same_caption_has_the_same_images_in_any_shard_and_batch() -> None:
    captions = make_captions(9)
    one = producer(captions, 8, captions_per_shard=9)
    other = producer(captions[::-1], 3, captions_per_shard=2)
    expected = {r.caption.text: r.images for r in one.produce(0, Tally())}
    for shard in range(5):
        for record in other.produce(shard, Tally()):
            assert isinstance(record, ImageSet)
            assert record.images == expected[record.caption.text]


def test_seeds_change_with_the_generator_and_not_with_the_number_of_images() -> None:
    captions = make_captions(2)

    def seeds(**changes: object) -> tuple[int, ...]:
        record = next(producer(captions, **changes).produce(0, Tally()))  # type: ignore[arg-type]
        assert isinstance(record, ImageSet)
        return record.seeds

    assert seeds(images_per_caption=2) == seeds(images_per_caption=6)[:2]
    assert not set(seeds()) & set(seeds(generator_digest="another"))


@pytest.mark.parametrize("word", ["blank", "broken"])
def test_unusable_images_are_painted_again_with_other_seeds(word: str) -> None:
    made = producer(captions_of(["a cat", f"{word} 6", "a dog"]))
    undisturbed = producer(captions_of(["a cat", "a house", "a dog"]))
    tally = Tally()
    records = list(made.produce(0, tally))
    assert all(isinstance(record, ImageSet) for record in records)
    cat, repainted, dog = records
    assert [cat, dog] == list(undisturbed.produce(0, Tally()))[::2]
    assert isinstance(repainted, ImageSet)
    assert len(set(repainted.seeds)) == 4
    reason = "image_blank" if word == "blank" else "image_not_finite"
    assert tally.as_dict() == {reason: 6, "repainted": 6}


def test_a_caption_whose_image_stays_unusable_fails_with_all_its_images() -> None:
    made = producer(captions_of(["a cat", "blank 9", "a dog"]), max_repaints=1)
    tally = Tally()
    cat, failure, dog = made.produce(0, tally)
    assert isinstance(cat, ImageSet)
    assert isinstance(dog, ImageSet)
    assert isinstance(failure, Failure)
    assert failure.record_id == caption_id("blank 9")
    assert failure.reason == "image_blank"
    assert tally.as_dict() == {"image_blank": 8, "repainted": 4}


@settings(max_examples=15, deadline=None)
@given(bad=st.sets(st.integers(0, 9), max_size=4), batch_size=st.sampled_from([1, 3, 8, 40]))
def test_a_caption_that_makes_the_engine_raise_fails_alone(bad: set[int], batch_size: int) -> None:
    texts = [f"{'raise' if i in bad else 'picture'} of thing {i}" for i in range(10)]
    made = producer(captions_of(texts), batch_size, captions_per_shard=10)
    tally = Tally()
    records = list(made.produce(0, tally))
    assert {i for i, record in enumerate(records) if isinstance(record, Failure)} == bad
    assert tally.as_dict().get("engine_error", 0) == len(bad)
    for record, text in zip(records, texts, strict=True):
        if isinstance(record, Failure):
            assert (record.record_id, record.reason) == (caption_id(text), "engine_error")
            assert "no such colour" in record.detail
        else:
            assert isinstance(record, ImageSet)
            assert all(
                shows(image, text, seed)
                for image, seed in zip(record.images, record.seeds, strict=True)
            )


def test_an_engine_that_paints_nothing_at_all_stops_the_shard() -> None:
    made = producer(make_captions(3))
    made._engine.dead = True  # type: ignore[union-attr]
    with pytest.raises(ImageEngineError, match=r"every caption .*no such colour"):
        list(made.produce(0, Tally()))


def test_batches_are_full_but_for_the_last() -> None:
    made = producer(make_captions(5), batch_size=8)
    list(made.produce(0, Tally()))
    assert made._engine.batches == [8, 8, 4]  # type: ignore[union-attr]


def test_painting_does_not_wait_for_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    painted = threading.Event()

    def late(*arguments: Any) -> bytes:
        assert painted.wait(30)
        return encode(*arguments)

    monkeypatch.setattr("transforms.images.producer.encode", late)
    made = producer(make_captions(6))
    records = made.produce(0, Tally())
    assert made._engine.batches == [8, 8, 8]  # type: ignore[union-attr]
    painted.set()
    assert all(isinstance(record, ImageSet) for record in records)


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("webp", b"RIFF")])
def test_images_are_stored_in_the_format_asked_for(kind: Any, start: bytes) -> None:
    made = producer(make_captions(2), encoding=EncodingConfig(format=kind))
    for record in made.produce(0, Tally()):
        assert isinstance(record, ImageSet)
        for image, seed in zip(record.images, record.seeds, strict=True):
            assert image.startswith(start)
            assert shows(image, record.caption.text, seed)


def test_a_producer_is_pickled_without_its_model(tmp_path: Path) -> None:
    made = ImagesProducer(_rows(make_captions(3)), block_spec(), paint_plan())
    assert len(pickle.dumps(made)) < 2000
    again = pickle.loads(pickle.dumps(made))
    again.setup()
    assert len(list(again.produce(0, Tally()))) == 3
