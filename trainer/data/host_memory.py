"""Errors which mean that the machine ran out of memory, as opposed to a broken sample.

A broken sample is replaced by another one. That must not happen to a sound sample for which there
is no memory, because the training would then see other data.
"""

import errno
import os

import torch

ADVICE = (
    "the machine is out of memory; lower loader.num_workers or loader.prefetch, or give it more"
)
"""What a user should do, the last part of a sentence."""
IMAGE_BYTES = 64 << 20
"""Bytes that are enough for the pixels of an image of 4,700 x 4,700."""
_NAMES = ("DefaultCPUAllocator", "bad_alloc", os.strerror(errno.ENOMEM))
"""Torch's allocator, the exception of C++ and the system's error. Torch has no class for them: it
raises a plain `RuntimeError` that contains one of these names."""


def is_memory_error(error: BaseException) -> bool:
    """Return whether an error means that the machine (not a GPU) is out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if type(error) is RuntimeError:
        return any(name in str(error) for name in _NAMES)
    return isinstance(error, MemoryError)


def is_memory_left() -> bool:
    """Return whether this process can have the memory that an image needs.

    For decoders that do not say why they failed: that of WebP has one sentence for damage and for a
    lack of memory.
    """
    try:
        torch.empty(IMAGE_BYTES, dtype=torch.uint8)
    except RuntimeError:
        return False
    return True
