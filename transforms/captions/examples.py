"""In-context examples: captions, written by us, that show a language model what to do.

Each template (`c`, `c, background`, `c, relation`) has examples of its own (paper, section 3.1).
Those of `c` are in three groups, one for each kind of concept (authors' code).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from transforms.core import storage
from transforms.core.config import Config, load_data
from transforms.core.errors import ConfigError

Group = Literal["objects", "places", "textures", "background", "relation"]
GROUPS: tuple[Group, ...] = ("objects", "places", "textures", "background", "relation")

_EXPECTED: dict[Group, str] = {
    "background": "a background, no relation",
    "relation": "a relation, no background",
}

EXAMPLES_PER_PROMPT = 3
"""Same as in the paper."""


class ExampleEntry(Config):
    """One example in a file."""

    concept: str
    """Concept that the caption is about."""
    background: str | None = None
    """Background of the concept; in the group `background` only."""
    relation: str | None = None
    """Relation of the concept to something else; in the group `relation` only."""
    caption: str
    """Caption, one line."""


class ExampleFile(Config):
    """The examples of one group."""

    examples: list[ExampleEntry]
    """Examples, at least three."""


class RelationFile(Config):
    """The relations of the template `c, relation`."""

    relations: list[str]
    """Relations, for instance `in front of`."""


@dataclass(frozen=True)
class Examples:
    """All examples as lines of a prompt, `query => caption`, by group."""

    lines: dict[Group, tuple[str, ...]]

    def digest(self) -> str:
        """Return the identity of the texts, 16 hex digits."""
        return text_digest(f"{group}\t{line}" for group in GROUPS for line in self.lines[group])


def query(concept: str, context: str | None) -> str:
    """Return the part before the arrow: the concept and, if given, its background or relation."""
    return f"{concept}, {context}" if context else concept


def load_examples(folder: str) -> Examples:
    """Read the five files `<group>.yaml` of a folder.

    Raises:
        ConfigError: A file is missing, or an example does not fit its group.
    """
    return Examples({group: _load_group(folder, group) for group in GROUPS})


def load_relations(path: str) -> tuple[str, ...]:
    """Read the list of relations.

    Raises:
        ConfigError: The file cannot be read, or its list is empty.
    """
    relations = load_data(RelationFile, path).relations
    if not relations or not all(relation.strip() for relation in relations):
        raise ConfigError(f"{path}: key 'relations' must list at least one relation, none empty")
    return tuple(relations)


def text_digest(lines: Iterable[str]) -> str:
    """Return a blake2b over lines of text, 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for line in lines:
        digest.update(line.encode("utf-8") + b"\n")
    return digest.hexdigest()


def _load_group(folder: str, group: Group) -> tuple[str, ...]:
    path = storage.join(folder, f"{group}.yaml")
    entries = load_data(ExampleFile, path).examples
    lines = []
    for entry in entries:
        given = (entry.background is not None, entry.relation is not None)
        if given != (group == "background", group == "relation") or "\n" in entry.caption:
            raise ConfigError(
                f"{path}: the example of {entry.concept!r} must have one line of caption and "
                f"{_EXPECTED.get(group, 'neither background nor relation')}"
            )
        context = entry.background or entry.relation
        lines.append(f"{query(entry.concept, context)} => {entry.caption}")
    if len(set(lines)) < EXAMPLES_PER_PROMPT:
        raise ConfigError(
            f"{path} has {len(set(lines))} examples: expected at least {EXAMPLES_PER_PROMPT}"
        )
    return tuple(lines)
