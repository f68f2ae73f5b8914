"""Keys of config classes: sections, choices between sections, and the help text for each key."""

import json
from collections.abc import Iterator, Mapping
from functools import reduce
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


def describe(cls: type[BaseModel]) -> str:
    """Return the help for every key of a config class, one block per key."""
    return "\n".join(_described(cls))


def _described(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in cls.model_fields.items():
        options = options_of(info)
        for option in options:
            if len(options) > 1:
                yield f"  with {prefix}{name}.{info.discriminator}={choice_of(option, info)}:"
            yield from _described(option, f"{prefix}{name}.")
        if options:
            continue
        yield f"  {prefix}{name}  ({type_text(info.annotation)}{_default_text(info)})"
        if info.description:
            yield "      " + " ".join(info.description.split())


def unions(
    cls: type[BaseModel], values: Any, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo, dict[str, Any]]]:
    """Yield the sections of `values` that are one of several: dotted name, field and values."""
    for name, info in cls.model_fields.items():
        given, options = values.get(name), options_of(info)
        if not isinstance(given, dict) or not options:
            continue
        if len(options) > 1:
            yield prefix + name, info, given
        option = chosen_option(info, given)
        if option is not None:
            yield from unions(option, given, f"{prefix}{name}.")


def options_of(info: FieldInfo) -> list[type[BaseModel]]:
    """Return the section classes that a field can hold; none if it is not a section."""
    return [t for t in (info.annotation, *get_args(info.annotation)) if is_section(t)]


def chosen_option(info: FieldInfo, given: Mapping[str, Any]) -> Any:
    """Return the section class that a section's values choose, the first by default."""
    options = options_of(info)
    if len(options) < 2:
        return options[0]
    wanted = given.get(str(info.discriminator))
    return next((option for option in options if choice_of(option, info) == wanted), options[0])


def choice_of(option: type[BaseModel], info: FieldInfo) -> Any:
    """Return the value of the discriminator that chooses a section class."""
    return get_args(option.model_fields[str(info.discriminator)].annotation)[0]


def leaves(
    cls: type[BaseModel], prefix: str = "", values: Any = None
) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted keys of a config class; with `values`, only those of the chosen sections."""
    for name, info in cls.model_fields.items():
        sections = options_of(info)
        if not sections:
            yield prefix + name, info
            continue
        given = values.get(name) if isinstance(values, dict) else None
        if isinstance(given, dict):
            sections = [chosen_option(info, given)]
        seen = set()
        for section in sections:
            for key, leaf in leaves(section, f"{prefix}{name}.", given):
                if key not in seen:
                    yield key, leaf
                seen.add(key)


def is_section(annotation: Any) -> bool:
    """Return whether an annotation is the class of a section."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def type_text(annotation: Any) -> str:
    """Return a type as the source writes it, without bounds."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return type_text(parts[0])
    if kind in (Union, UnionType):
        return " | ".join(type_text(part) for part in parts)
    if kind is Literal:
        return f"Literal[{', '.join(repr(part) for part in parts)}]"
    if kind is None:
        return {NoneType: "None", Ellipsis: "..."}.get(annotation) or annotation.__name__
    return f"{kind.__name__}[{', '.join(type_text(part) for part in parts)}]"


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return ", required"
    value = info.get_default(call_default_factory=True, validated_data={})
    return "" if value is PydanticUndefined else f", default {json.dumps(value, default=str)}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of nested values with their values, sections left out."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values from dotted keys; the inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        reduce(lambda at, section: at.setdefault(section, {}), sections, nested)[name] = value
    return nested


def given_keys(values: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of nested values, sections included."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield f"{prefix}{name}"
            yield from given_keys(value, f"{prefix}{name}.")
