"""Parser of remedies: the steps that a printed message tells a person to take."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_STEP = re.compile(
    r"`python -m pipelines (?P<job>[a-z-]+)(?P<arguments>[^`]*)`"
    r"(?: with (?P<key>\S+=[\d.]*\d|the same settings))?"
    r"|run (?P<names>[a-z-]+(?:, then [a-z-]+)*) again"
    r"|(?P<same>(?:the same|this) command|run again)"
    r"|(?P<verify>(?:then|;) verify)\b"
    r"|(?P<delete>delete (?P<what>it|that folder|\S+/\S+)(?P<later> and the retries after it)?)"
)
_PATH = re.compile(r"(?:\w+://|/)[^\s,;:()]+")

Action = Literal["run", "same", "verify", "delete"]


@dataclass(frozen=True)
class Step:
    """A step of a remedy.

    Attributes:
        action: "run" a job, the "same" command, "verify", or "delete" a file.
        words: Name and arguments of the job.
        settings: Addition of the message to the arguments: `key=value`, or "the same settings".
        path: File or folder to delete.
        and_later: True to delete the retries after the folder, too.
    """

    action: Action
    words: tuple[str, ...] = ()
    settings: str = ""
    path: str = ""
    and_later: bool = False


def steps(message: str, path: str = "") -> Iterator[Step]:
    """Yield the steps that a message names, in its order.

    Args:
        message: A line of a command.
        path: Path that "it" means in the message; "" takes the first path that it names.
    """
    for found in _STEP.finditer(message):
        if found["delete"]:
            named = _PATH.search(message)
            it = path or (named[0] if named else "")
            targets = {"it": it, "that folder": it.rpartition("/")[0]}
            target = targets.get(found["what"], found["what"])
            yield Step("delete", path=target, and_later=found["later"] is not None)
        elif found["same"]:
            yield Step("same")
        elif found["verify"]:
            yield Step("verify")
        elif found["names"]:
            yield from (Step("run", (name,)) for name in found["names"].split(", then "))
        else:
            words = (found["job"], *shlex.split(found["arguments"]))
            yield Step("run", words, settings=found["key"] or "")


def name(step: Step) -> str:
    """Return the kind of a step, for the table."""
    if step.action == "run":
        words = [word for word in step.words if "=" in word and "/" not in word]
        return " ".join(["run", step.words[0], *words])
    if step.action == "delete":
        is_folder = "." not in step.path.rpartition("/")[2]
        return "delete a folder" if is_folder and "_SUCCESS" not in step.path else "delete a file"
    return {"same": "run the same command again", "verify": "run verify"}[step.action]
