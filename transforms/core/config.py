"""Job configuration: one YAML file per job, `key=value` overrides, checked before anything runs.

OmegaConf reads and merges, pydantic validates. Configs are frozen: values that follow from others
are computed by functions and never written back. Every error is one sentence that names the key,
the value and what was expected.
"""

import difflib
import io
import json
from collections.abc import Iterator, Sequence
from functools import reduce
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
    """Base of every config section: frozen; unknown keys and infinite numbers are errors.

    Describe each field in a string literal right under it: it becomes the key's help.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


Probability = Annotated[float, Field(ge=0, le=1)]
"""A share or a probability, 0 to 1."""

OF_ANOTHER_JOB = 3
"""Unknown keys at the top of a file from which on it is taken for another job's."""
FEW = 2
"""Unknown keys without a hint up to which the known keys are listed."""
CLOSE = 0.75
"""How like a known key (`difflib`'s ratio) a misspelt one is; `sede` and `seed` are 0.75."""
SHOWN = 200
"""Characters of a wrong value that a sentence repeats."""

A_LIST = "a list"
EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), A_LIST),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a section of keys"),
    **{"string_type": "text", "finite_number": "a finite number", "literal_error": "{expected}"},
    **{"greater_than": "more than {gt:g}", "greater_than_equal": "at least {ge:g}"},
    **{"less_than": "less than {lt:g}", "less_than_equal": "at most {le:g}"},
}
"""What a wrong value should have been, by pydantic's name of the mistake; with its details."""

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
    except IsADirectoryError as error:
        raise ConfigError(f"{path!r} is a folder: expected a YAML file") from error
    except OSError as error:
        raise ConfigError(f"config file {path!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path!r} cannot be read: it is not UTF-8 text") from error
    return parse_config(cls, text, path, overrides)


def parse_config(
    cls: type[ConfigT], text: str, path: str, overrides: Sequence[str] = ()
) -> ConfigT:
    """As `load_config`, from YAML that was read from `path`."""
    try:
        loaded = OmegaConf.load(io.StringIO(text))
        if not isinstance(loaded, DictConfig):
            raise ConfigError(f"config file {path!r} must hold `key: value` lines")
        merged = reduce(_overridden, overrides, loaded)
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
        raise ConfigError(_sentence(cls, error.errors(), path, loaded, values)) from error


def _overridden(config: DictConfig, override: str) -> DictConfig:
    if not override.partition("=")[0] or "=" not in override:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    try:
        merged = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
    except (yaml.YAMLError, OmegaConfBaseException, IndexError, TypeError) as error:
        raise ConfigError(f"override {override!r} cannot be read: {_one_line(error)}") from error
    assert isinstance(merged, DictConfig), "as both of its parts"
    return merged


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


def _sentence(
    cls: type[Config], details: Sequence[ErrorDetails], path: str, loaded: DictConfig, values: Any
) -> str:
    """What is wrong with `values`, some of which were `loaded` from `path`."""
    unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
    strange = [detail["loc"][0] for detail in unknown if len(detail["loc"]) == 1]
    if sum(key in loaded for key in strange) >= OF_ANOTHER_JOB:
        keys = ", ".join(repr(_key(detail)) for detail in unknown)
        return f"{path} looks like the config of another job: unknown keys {keys}"
    sentences = [_about_unknown(cls, unknown, set(_given(values)))] if unknown else []
    sentences += [_about_value(cls, detail) for detail in details if detail not in unknown]
    return f"{path}: {'; '.join(dict.fromkeys(sentences))}"


def _about_unknown(cls: type[Config], unknown: Sequence[ErrorDetails], given: set[str]) -> str:
    """One sentence about all unknown keys; a key that is `given` is nobody's misspelling."""
    known = [name for name, _ in _leaves(cls)]
    candidates = [name for name in (*known, *cls.model_fields) if name not in given]
    named, without_hint = [], []
    for detail in unknown:
        key, value = _key(detail), _shown(detail["input"])
        elsewhere = [name for name in known if _last(name) == _last(key)]
        close = elsewhere[0] if len(elsewhere) == 1 else _closest(key, candidates)
        if close and len(unknown) == 1:
            return f"unknown key {key!r} (value {value}): did you mean {close!r}?"
        hint = f", did you mean {close!r}?" if close else ""
        named.append(f"{key!r} (value {value}{hint})")
        without_hint += [] if close else [detail]
    text = f"unknown key{'s' if len(named) > 1 else ''} {', '.join(named)}"
    if len(without_hint) <= FEW:
        beside = dict.fromkeys(name for d in without_hint for name in _beside(known, d))
        text += f": known keys are {', '.join(beside)}" if beside else ""
    return text


def _closest(key: str, candidates: Sequence[str]) -> str | None:
    """The key that is meant, if one is close; a common section alone makes none so."""
    for close in difflib.get_close_matches(key, candidates, n=5, cutoff=CLOSE):
        if difflib.get_close_matches(_last(key), [_last(close)], cutoff=CLOSE):
            return close
    return None


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _beside(known: Sequence[str], detail: ErrorDetails) -> Iterator[str]:
    """The known keys and sections of the section that a key is in."""
    section = "".join(f"{part}." for part in detail["loc"][:-1] if isinstance(part, str))
    for name in known:
        if name.startswith(section):
            yield section + name.removeprefix(section).partition(".")[0]


def _given(values: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested values, with those of the sections."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield f"{prefix}{name}"
            yield from _given(value, f"{prefix}{name}.")


def _about_value(cls: type[Config], detail: ErrorDetails) -> str:
    key, kind, value, loc = _key(detail), detail["type"], detail["input"], detail["loc"]
    described = dict(_leaves(cls))
    if kind == "missing" and isinstance(loc[-1], str):
        expected = f": expected {_type_text(described[key].annotation)}" if key in described else ""
        return f"key {key!r} is missing{expected}"
    if kind == "missing":  # A number, in a list that is too short.
        key = key.rpartition(".")[0]
    message = detail["msg"].removeprefix("Value error, ")
    size = _size(described[key].annotation) if key in described else None
    if size and kind in ("missing", "too_long", "tuple_type"):
        message = f"expected a list of {size} numbers"
    elif kind in EXPECTED:
        message = f"expected {EXPECTED[kind].format(**detail.get('ctx', {}))}"
        names = all(isinstance(part, str) for part in loc)
        if EXPECTED[kind] == A_LIST and names and isinstance(value, str | int | float):
            message += f", write {key}=[{value}]"
    if kind == "value_error" and isinstance(value, dict):  # Keys in it do not fit each other.
        return f"section {key!r}: {message}" if loc else message
    return f"key {key!r} has value {_shown(value)}: {message}"


def _size(annotation: Any) -> int | None:
    """Numbers in a list of fixed length; None where it has any length or is no list."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind in (Annotated, Union, UnionType):
        return next(filter(None, map(_size, parts)), None)
    return len(parts) if kind is tuple and Ellipsis not in parts else None


def _key(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in detail["loc"]) or "config"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
