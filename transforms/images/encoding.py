"""Encoding of pixels into image files (the authors' code stores JPEG)."""

import io
import logging
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from transforms.core.config import Config, no_fingerprint
from transforms.engines.image.base import Pixels

log = logging.getLogger(__name__)


class EncodingConfig(Config):
    """How images are stored."""

    format: Literal["jpeg", "webp", "png"] = "jpeg"
    """Format of the image files."""
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """Quality of JPEG and WebP; PNG is lossless."""
    threads: PositiveInt = no_fingerprint(4)
    """Threads that encode images while the next batch is painted."""

    @model_validator(mode="after")
    def _check(self) -> "EncodingConfig":
        if self.format == "png" and "quality" in self.model_fields_set:
            log.warning("encoding.quality has no effect on PNG")
        return self


def encode(pixels: Pixels, config: EncodingConfig) -> bytes:
    """Return an image [H, W, 3] as the bytes of a file."""
    from PIL import Image

    buffer = io.BytesIO()
    quality = {} if config.format == "png" else {"quality": config.quality}
    Image.fromarray(pixels).save(buffer, config.format, **quality)
    return buffer.getvalue()
