"""Small records for tests."""

import io

import numpy as np
from PIL import Image

from transforms.core.records import Caption, ImageSet
from transforms.core.seeding import caption_id


def caption(number: int) -> Caption:
    text = f"a picture of thing {number}"
    return Caption(caption_id(text), text, number, f"thing {number}", "test", "c", None, None)


def image_set(number: int, images: tuple[bytes, ...] | None = None) -> ImageSet:
    if images is None:
        random = np.random.default_rng(number)
        images = tuple(jpeg(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(4))
    seeds = tuple(range(number, number + len(images)))
    return ImageSet(caption(number), images, seeds, {"steps": 5})


def jpeg(pixels: "np.typing.NDArray[np.uint8]") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
