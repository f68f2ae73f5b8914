"""Seeds, derived from what they are used for and never from a running state.

A seed depends only on its parts, so a record is the same whichever worker, batch, shard or attempt
makes it.
"""

import hashlib


def derive(*parts: str | int, bits: int = 63) -> int:
    """Return a seed in [0, 2**bits), the blake2b hash of the parts.

    Args:
        *parts: What the seed is for, for instance (fingerprint, record id, image number). The
            type and the length of each part count: ("ab", "c") and ("a", "bc") differ.
        bits: Size of the seed; 63 fits torch's and NumPy's signed seeds.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = f"{type(part).__name__}:{part}".encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "big") >> (128 - bits)


def caption_id(text: str, occurrence: int = 0) -> str:
    """Return the id of a caption, the blake2b hash of its cleaned text: 16 hex digits.

    Args:
        text: The cleaned text.
        occurrence: Number of the caption among those with this text. It is the salt of the hash,
            so the first one has the id of the text alone: blake2b without salt has salt 0.
    """
    salt = occurrence.to_bytes(hashlib.blake2b.SALT_SIZE, "big")
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8, salt=salt).hexdigest()
