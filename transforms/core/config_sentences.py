"""One sentence for everything that is wrong with the values of a config."""

import difflib
from collections.abc import Iterator, Sequence
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


def sentence(
    cls: type[BaseModel],
    details: Sequence[ErrorDetails],
    path: str,
    loaded: DictConfig,
    values: Any,
) -> str:
    """What is wrong with `values`, some of which were `loaded` from `path`."""
    unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
    strange = [detail["loc"][0] for detail in unknown if len(detail["loc"]) == 1]
    if sum(key in loaded for key in strange) >= OF_ANOTHER_JOB:
        keys = ", ".join(repr(_key(cls, detail)) for detail in unknown)
        return f"{path} looks like the config of another job: unknown keys {keys}"
    sentences = [_about_unknown(cls, unknown, values)] if unknown else []
    sentences += [_about_value(cls, detail) for detail in details if detail not in unknown]
    return f"{path}: {'; '.join(dict.fromkeys(sentences))}"


def _about_unknown(cls: type[BaseModel], unknown: Sequence[ErrorDetails], values: Any) -> str:
    """One sentence about all unknown keys; keys that are in `values` are no corrections."""
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
        beside = dict.fromkeys(n for d in without_hint for n in _beside(known, _key(cls, d)))
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


def _beside(known: Sequence[str], key: str) -> Iterator[str]:
    """The known keys and sections of the section that a key is in."""
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
    """Numbers in a list of fixed length; None where it has any length or is no list."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind in (Annotated, Union, UnionType):
        return next(filter(None, map(_size, parts)), None)
    return len(parts) if kind is tuple and Ellipsis not in parts else None


def _key(cls: type[BaseModel], detail: ErrorDetails) -> str:
    """The dotted key of an error; pydantic puts the choice of a section into its place, too."""
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
