"""References: what a config takes from the environment is used, but never written.

A value in the config of a job may be `${oc.env:NAME}`. The stage works with the value. What is
written (`run.yaml`, checkpoints, metadata of images, Weights & Biases) holds the reference, so that
a secret does not land in a run. A fingerprint is computed from the value; its field in `run.yaml`
is the reference and a hash of the value, so that another value is noticed. Messages show the
reference, too, except in the places where a run reads and writes: a command in a message must work.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from transforms.core.config_keys import flatten, nest
from transforms.core.errors import ConfigError

PLACES = ("run", "captions", "data.images", "checkpoint")
"""Dotted keys of jobs that hold a folder or URL."""

_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
"""A `${` that no backslash escapes."""
_VARIABLE = re.compile(r"oc\.env:\s*([A-Za-z_][A-Za-z0-9_]*)")
_SHORTEST = 4
"""Characters of the shortest value that messages hide; a shorter one is a part of many words."""

_hidden: dict[str, str] = {}
"""Values that this process has taken from the environment -> their references."""


def texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield all texts in nested values with their dotted keys."""
    if isinstance(values, str):
        yield key, values
    elif isinstance(values, Mapping | list | tuple):
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        for name, value in items:
            yield from texts(value, f"{key}.{name}" if key else str(name))


def interpolated(values: Any) -> str | None:
    """Return the key of the first text that contains an interpolation; None if there is none."""
    return next((key for key, text in texts(values) if _INTERPOLATION.search(text)), None)


def references_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config that may come from the environment, by their dotted keys.

    Args:
        raw: The nested values before their interpolations are resolved.

    Returns:
        Dotted key -> unresolved value. It is empty if the config does not use the environment:
        then an interpolation is only an abbreviation of what the file says.
    """
    found = {key: value for key, value in flatten(raw) if interpolated(value) is not None}
    return found if any("oc.env" in text for _, text in texts(found)) else {}


def hide(references: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Hide the values of references in the messages of this process; see `redacted`.

    Args:
        references: Result of `references_of`.
        values: The nested values of the same config, resolved.
    """
    flat = dict(flatten(values))
    places = [value for key in PLACES if isinstance(value := flat.get(key), str)]
    secrets: dict[str, str] = {}
    for key, raw in references.items():
        for _, text in texts(raw):
            names = _VARIABLE.findall(text)
            secrets |= {os.environ.get(name, ""): f"${{oc.env:{name}}}" for name in names}
        if isinstance(raw, str) and isinstance(value := flat.get(key), str):
            secrets.setdefault(value, raw)
    for secret, reference in secrets.items():
        if len(secret) >= _SHORTEST and not any(secret in place for place in places):
            _hidden[secret] = reference


def redacted(message: str) -> str:
    """Return a message with references in place of values from the environment."""
    for secret in sorted(_hidden, key=len, reverse=True):
        message = message.replace(secret, _hidden[secret])
    return message


def with_references(values: Mapping[str, Any], references: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values as they are written: with references, and with every other `${` escaped.

    Args:
        values: The resolved values.
        references: Result of `references_of`.
    """
    flat = {key: _escaped(value) for key, value in flatten(values)}
    for key, raw in references.items():
        flat = {k: v for k, v in flat.items() if k != key and not k.startswith(f"{key}.")}
        flat[key] = raw
    return nest(flat)


def resolved(values: Mapping[str, Any], section: str = "", where: str = "") -> dict[str, Any]:
    """Return written values, or a section of them, with their references resolved.

    Args:
        values: Nested values, as `with_references` returns them.
        section: Top-level key of the section to return; all values by default.
        where: Name of their file, for the error. Without it, references stay if the environment
            does not have their value.

    Raises:
        ConfigError: A reference cannot be resolved.
    """
    # Here, since every command prints through `redacted`, also `--help`.
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    whole = OmegaConf.create(dict(values))
    prefix = f"{section}." if section else ""
    flat = {}
    for key, raw in flatten(values[section] if section else values):
        flat[key] = raw
        if not any("${" in text for _, text in texts(raw)):
            continue
        try:
            node = OmegaConf.select(whole, prefix + key)
            is_nested = OmegaConf.is_config(node)
            flat[key] = OmegaConf.to_container(node, resolve=True) if is_nested else node
        except OmegaConfBaseException as error:
            if where:
                reason = str(error).partition("\n")[0]
                raise ConfigError(
                    f"{where}: key {prefix + key!r} is {raw!r}, which cannot be resolved: {reason}"
                ) from error
    return nest(flat)


def whole_number(value: Any) -> int | None:
    """Return a resolved whole number, which is a text if it comes from the environment.

    Returns:
        The number; None if the value is something else, for instance an unresolved reference.
    """
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value if isinstance(value, int) else None


def written_fields(fields: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a fingerprint as they are written.

    Args:
        fields: The fields with their values. Their names end with the names of their keys.
        config: The config with references, as `with_references` returns it.
    """
    references = {_last(key): raw for key, raw in flatten(config) if interpolated(raw) is not None}
    written = {}
    for name, value in fields.items():
        # The identity of a model may contain its name, for instance.
        hidden = redacted(value) if isinstance(value, str) else value
        source = references.get(_last(name), hidden)
        is_secret = _last(name) in references or hidden != value
        written[name] = {"from": source, "blake2b": field_hash(name, value)} if is_secret else value
    return written


def without_hashes(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `written_fields` returns with the references alone."""
    return {name: field["from"] if is_hashed(field) else field for name, field in written.items()}


def is_hashed(field: Any) -> bool:
    """Return whether `written_fields` has replaced the value of a field."""
    return isinstance(field, Mapping) and set(field) == {"from", "blake2b"}


def field_hash(name: str, field: Any) -> str:
    """Return the hash of a field, given its value or what `written_fields` returns for it."""
    if is_hashed(field):
        return str(field["blake2b"])
    content = json.dumps([name, field], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(content.encode("utf-8"), digest_size=16).hexdigest()


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _escaped(value: Any) -> Any:
    """Return a value whose texts resolve to themselves."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {name: _escaped(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    return value
