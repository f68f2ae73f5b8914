"""Job configuration: one YAML file per job, `key=value` overrides, checked before anything runs.

OmegaConf reads and merges, pydantic validates. Configs are frozen: values that follow from others
are computed by functions and never written back. Every error is one sentence that names the key,
the value and what was expected.
"""

import difflib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined


class ConfigError(ValueError):
    """A setting is wrong; the message is one sentence for the person who wrote it."""


class Config(BaseModel):
    """Base of every config section: frozen, and unknown keys are errors.

    Describe each field in a string literal right under it: it becomes the key's help.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


Probability = Annotated[float, Field(ge=0, le=1)]
"""A share or a probability, 0 to 1."""

ConfigT = TypeVar("ConfigT", bound=Config)


def no_fingerprint(default: Any = ...) -> Any:
    """A field that changes where or how fast a stage runs, but never the bytes it makes."""
    return Field(default, json_schema_extra={"fingerprint": False})


def load_config(cls: type[ConfigT], path: str, overrides: Sequence[str] = ()) -> ConfigT:
    """Read `path`, apply `overrides` and validate.

    Args:
        cls: The job's config class.
        path: A local YAML file.
        overrides: `key=value` strings; dots reach into sections, values are YAML.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config file {path!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path!r} cannot be read: it is not UTF-8 text") from error
    return parse_config(cls, text, path, overrides)


def parse_config(
    cls: type[ConfigT], text: str, path: str, overrides: Sequence[str] = ()
) -> ConfigT:
    """As `load_config`, from YAML that was read from `path`."""
    for override in overrides:
        if not override.partition("=")[0] or "=" not in override:
            raise ConfigError(f"override {override!r} is not of the form key=value")
    try:
        loaded = OmegaConf.load(io.StringIO(text))
        if not isinstance(loaded, DictConfig):
            raise ConfigError(f"config file {path!r} must hold `key: value` lines")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path!r} is not valid YAML: {_one_line(error)}") from error
    except OSError as error:  # OmegaConf's way to say that it is neither a mapping nor a list.
        raise ConfigError(f"config file {path!r} must hold `key: value` lines") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"config file {path!r} cannot be resolved: {_one_line(error)}") from error
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        details = "; ".join(_sentence(cls, detail) for detail in error.errors())
        raise ConfigError(f"{path}: {details}") from error


def describe(cls: type[Config]) -> str:
    """Help for every key of a config class, one block a key."""
    lines = []
    for key, info in _leaves(cls):
        default = _default_text(info)
        lines.append(f"  {key}  ({_type_text(info.annotation)}{default})")
        if info.description:
            lines.append("      " + " ".join(info.description.split()))
    return "\n".join(lines)


def fingerprint_fields(config: Config) -> dict[str, Any]:
    """The settings that change the bytes a stage makes, as flat dotted keys with JSON values."""
    fields: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        if not _in_fingerprint(info):
            continue
        value = getattr(config, name)
        if isinstance(value, Config):
            for key, inner in fingerprint_fields(value).items():
                fields[f"{name}.{key}"] = inner
        else:
            fields[name] = config.model_dump(mode="json", include={name})[name]
    return fields


def _in_fingerprint(info: FieldInfo) -> bool:
    extra = info.json_schema_extra
    return not (isinstance(extra, dict) and extra.get("fingerprint") is False)


def _leaves(cls: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in cls.model_fields.items():
        sections = [t for t in (info.annotation, *get_args(info.annotation)) if _is_section(t)]
        if sections:
            yield from _leaves(sections[0], f"{prefix}{name}.")
        else:
            yield prefix + name, info


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Config)


def _type_text(annotation: Any) -> str:
    """As it is written in the source, without the bounds."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return _type_text(parts[0])
    if kind in (Union, UnionType):
        return " | ".join(_type_text(part) for part in parts)
    if kind is Literal:
        return f"Literal[{', '.join(repr(part) for part in parts)}]"
    if kind is None:
        return {NoneType: "None", Ellipsis: "..."}.get(annotation) or annotation.__name__
    return f"{kind.__name__}[{', '.join(_type_text(part) for part in parts)}]"


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return ", required"
    value = info.get_default(call_default_factory=True, validated_data={})
    return "" if value is PydanticUndefined else f", default {json.dumps(value, default=str)}"


def _sentence(cls: type[Config], detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "config"
    if detail["type"] == "extra_forbidden":
        known = [name for name, _ in _leaves(cls)]
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys are {', '.join(known)}"
        return f"unknown key {key!r} (value {detail['input']!r}): {hint}"
    if detail["type"] == "missing":
        described = dict(_leaves(cls)).get(key)
        expected = f": expected {_type_text(described.annotation)}" if described else ""
        return f"key {key!r} is missing{expected}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["loc"]:
        return f"key {key!r} has value {detail['input']!r}: {message}"
    return message


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
