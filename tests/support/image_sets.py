"""Image sets for tests."""

import io

import numpy as np
from PIL import Image

from tests.support.captions import caption
from transforms.core.records import ImageSet


def image_set(number: int, images: tuple[bytes, ...] | None = None) -> ImageSet:
    """Return the image set of caption `number`: four small JPEG images of noise by default."""
    if images is None:
        random = np.random.default_rng(number)
        images = tuple(jpeg(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(4))
    seeds = tuple(range(number, number + len(images)))
    return ImageSet(caption(number), images, seeds, {"steps": 5})


def jpeg(pixels: "np.typing.NDArray[np.uint8]") -> bytes:
    """Return pixels [H, W, 3] as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
