"""The messages in our sources that say what to do."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tests.support.paths import ROOT

PACKAGES = ("pipelines", "trainer", "transforms")

_REMEDY = re.compile(
    r"\bagain\b|\bdeletes? (it|them|that)\b|repair=true|retry-failed|\brun (the|its|`|{)"
    r"|to continue|choose another|ask for|\brestore\b|check its run|what the lines say"
)
"""Words of a message that tells a person to do something with a run."""


@dataclass(frozen=True)
class Message:
    """A text in our sources.

    Attributes:
        file: Path of the module.
        text: The text; a value that is filled in is "{}".
    """

    file: str
    text: str


@cache
def messages_with_remedies() -> tuple[Message, ...]:
    """Return every text, docstrings apart, that tells a person to do something."""
    trees = {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if "tiny_sd" not in path.parts
    }
    constants = {name: text for tree in trees.values() for name, text in _constants(tree)}
    return tuple(
        Message(file, " ".join(text.split()))
        for file, tree in trees.items()
        for text in _texts(tree, constants)
        if _REMEDY.search(text)
    )


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the texts that have a name of capitals, which other texts fill in."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield name, value.value


def _texts(tree: ast.Module, constants: dict[str, str]) -> Iterator[str]:
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if id(node) in docstrings or id(node) in inner:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            yield node.value if isinstance(node.value, str) else node.value.decode("latin-1")
        elif isinstance(node, ast.JoinedStr):
            yield "".join(_part(part, constants) for part in node.values)


def _part(part: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    value = part.value if isinstance(part, ast.FormattedValue) else part
    return constants.get(value.id, "{}") if isinstance(value, ast.Name) else "{}"
