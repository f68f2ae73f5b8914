"""Checksums of JSON and YAML files inside themselves: commit records, `plan.json` and `run.yaml`.

A flipped bit often leaves such a file readable, with another value. Its own checksum reveals it.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any


def add_checksum(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return values of JSON types, with their checksum under `key`."""
    return {**values, key: _sha256(values)}


def remove_checksum(values: object, key: str, known: Collection[str]) -> dict[str, Any]:
    """Return the values of a file without their checksum, which is compared.

    Args:
        values: Parsed content of the file.
        key: Key of the checksum. Files of earlier versions lack it.
        known: All other keys that such a file can have. If a bit of `key` is flipped, the checksum
            is under an unknown key.

    Raises:
        ValueError: The file holds something else, or its content does not have its checksum.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it holds {type(values).__name__}, expected keys and values")
    rest = {name: value for name, value in values.items() if name != key}
    unknown = rest.keys() - set(known)
    if unknown:
        raise ValueError(f"key {min(unknown, key=str)!r} is unknown")
    if key in values and values[key] != _sha256(rest):
        raise ValueError("its content does not have its checksum")
    return rest


def _sha256(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of values as JSON with sorted keys, 64 hex digits."""
    try:
        text = json.dumps(dict(values), sort_keys=True)
    except TypeError as error:  # YAML can hold dates, and keys that cannot be sorted.
        raise ValueError(f"it holds values that are not of JSON: {error}") from error
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
