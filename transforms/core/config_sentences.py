"""Error messages for wrong values of a config: one sentence for all mistakes."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from omegaconf import DictConfig
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from transforms.core.config_keys import (
    choice_of,
    given_keys,
    is_section,
    leaves,
    options_of,
    type_text,
)

OF_ANOTHER_JOB = 3
"""A file with at least this many unknown top-level keys is taken for another job's config."""

FEW = 2
"""The known keys are listed if at most this many unknown keys have no hint."""

CLOSE = 0.75
"""Least similarity of a misspelt key and a hint (`difflib`'s ratio); `sede`, `seed`: 0.75."""

SHOWN = 200
"""Characters of a wrong value that a message shows."""

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
"""pydantic's type of an error -> the expected value; braces hold details of the error."""


def sentence(
    cls: type[BaseModel],
    details: Sequence[ErrorDetails],
    path: str,
    loaded: DictConfig,
    values: Any,
    references: Mapping[str, Any],
) -> str:
    """Return a message about `values`, some of which were `loaded` from `path`.

    Args:
        cls: Config class of the values.
        details: pydantic's errors about them.
        path: Name of the file.
        loaded: Content of the file.
        values: The nested values.
        references: Dotted key -> what is shown in place of a value that comes from elsewhere.
    """
    details = [_with_reference(cls, detail, references) for detail in details]
    unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
    strange = [detail["loc"][0] for detail in unknown if len(detail["loc"]) == 1]
    if sum(key in loaded for key in strange) >= OF_ANOTHER_JOB:
        keys = ", ".join(repr(_key(cls, detail)) for detail in unknown)
        return f"{path} looks like the config of another job: unknown keys {keys}"
    sentences = [_about_unknown(cls, unknown, values)] if unknown else []
    sentences += [_about_value(cls, detail) for detail in details if detail not in unknown]
    return f"{path}: {'; '.join(dict.fromkeys(sentences))}"


def _with_reference(
    cls: type[BaseModel], detail: ErrorDetails, references: Mapping[str, Any]
) -> ErrorDetails:
    """Return an error that shows the reference in place of the value."""
    key = _key(cls, detail)
    for name, raw in references.items():
        if key == name or key.startswith(f"{name}."):
            return {**detail, "input": raw}
        if detail["type"] == "union_tag_invalid" and name.startswith(f"{key}."):
            return {**detail, "ctx": {**detail["ctx"], "tag": raw}}
    return detail


def _about_unknown(cls: type[BaseModel], unknown: Sequence[ErrorDetails], values: Any) -> str:
    """Return one message about all unknown keys; keys in `values` are not suggested."""
    known, given = [name for name, _ in leaves(cls, values=values)], set(given_keys(values))
    candidates = [name for name in (*known, *cls.model_fields) if name not in given]
    named, without_hint = [], []
    for detail in unknown:
        key, value = _key(cls, detail), _shown(detail["input"])
        elsewhere = [name for name in known if _last(name) == _last(key)]
        close = elsewhere[0] if len(elsewhere) == 1 else _closest(key, candidates)
        if close and len(unknown) == 1:
            return f"unknown key {key!r} (value {value}): did you mean {close!r}?"
        hint = f", did you mean {close!r}?" if close else ""
        named.append(f"{key!r} (value {value}{hint})")
        without_hint += [] if close else [detail]
    text = f"unknown key{'s' if len(named) > 1 else ''} {', '.join(named)}"
    if len(without_hint) <= FEW:
        others = dict.fromkeys(n for d in without_hint for n in _neighbours(known, _key(cls, d)))
        text += f": known keys are {', '.join(others)}" if others else ""
    return text


def _closest(key: str, candidates: Sequence[str]) -> str | None:
    """Return the known key that is most similar; a common section alone is not enough."""
    for close in difflib.get_close_matches(key, candidates, n=5, cutoff=CLOSE):
        if difflib.get_close_matches(_last(key), [_last(close)], cutoff=CLOSE):
            return close
    return None


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _neighbours(known: Sequence[str], key: str) -> Iterator[str]:
    """Yield the known keys and sections of the section that a key is in."""
    section = "".join(f"{part}." for part in key.split(".")[:-1] if not part.isdigit())
    for name in known:
        if name.startswith(section):
            yield section + name.removeprefix(section).partition(".")[0]


def _about_value(cls: type[BaseModel], detail: ErrorDetails) -> str:
    key, kind, value, loc = _key(cls, detail), detail["type"], detail["input"], detail["loc"]
    described = dict(leaves(cls))
    if kind == "union_tag_invalid":
        context = detail["ctx"]
        name = str(context["discriminator"]).strip("'")
        return (
            f"key '{key}.{name}' has value {context['tag']!r}: expected {context['expected_tags']}"
        )
    if kind == "missing" and isinstance(loc[-1], str):
        expected = f": expected {type_text(described[key].annotation)}" if key in described else ""
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
    """Return the length of a list type; None for lists of any length and for other types."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind in (Annotated, Union, UnionType):
        return next(filter(None, map(_size, parts)), None)
    return len(parts) if kind is tuple and Ellipsis not in parts else None


def _key(cls: type[BaseModel], detail: ErrorDetails) -> str:
    """Return the dotted key of an error; pydantic's location also names the chosen sections."""
    parts: list[str] = []
    section: Any = cls
    location = iter(detail["loc"])
    for part in location:
        parts.append(str(part))
        info = section.model_fields.get(part) if is_section(section) else None
        options = options_of(info) if info else []
        section = options[0] if options else None
        if len(options) > 1:
            tag = next(location, None)
            section = next((o for o in options if info and choice_of(o, info) == tag), None)
    return ".".join(parts) or "config"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
