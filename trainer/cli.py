"""What the trainer's commands share: parser, logging, and errors as one last line and an exit code.

Exit codes are those of `transforms.core.exit_codes`. Importing this module does not import torch,
so that `--help` answers quickly.
"""

import argparse
import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transforms.core.config import Config
from transforms.core.config_keys import describe
from transforms.core.errors import ConfigError, DamagedFileError, StorageError, UnfinishedError
from transforms.core.exit_codes import INTERRUPTED, OK, UNFINISHED, WRONG_CONFIG
from transforms.core.progress import LogHandler
from transforms.core.references import redacted
from transforms.core.scratch import temporary_folder


@dataclass(frozen=True)
class Ending:
    """The exit code and the last line for one class of errors."""

    error: type[BaseException]
    code: int
    line: str = "{}"
    """The last line; `{}` is the sentence of the error."""
    every_rank: bool = False
    """Print the line on every rank that has this error; otherwise only rank 0 prints it."""


ENDINGS = (
    Ending(ConfigError, WRONG_CONFIG),
    Ending(StorageError, UNFINISHED),
    Ending(DamagedFileError, UNFINISHED),
    Ending(UnfinishedError, UNFINISHED),
    Ending(KeyboardInterrupt, INTERRUPTED, "Interrupted: run the same command again."),
)
"""Endings of every command; a command may put its own before them."""


def command_parser(
    module: str, description: str, config: type[Config] | None = None
) -> argparse.ArgumentParser:
    """Return the parser of a command, with `--help` and `--version`.

    Args:
        module: Name of the module that is run, for instance "trainer.train".
        description: One sentence that says what the command does.
        config: Config class of the command; the help lists its keys.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"Keys:\n{describe(config)}" if config else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(parser)
    return parser


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add `--version`, which prints the version of the package."""
    version = f"synclr {importlib.metadata.version('synclr')}"
    parser.add_argument("--version", action="version", version=version)


def add_config_arguments(
    parser: argparse.ArgumentParser, name: str, description: str, *, optional: bool = False
) -> None:
    """Add the argument for the file that holds the config, and `overrides` of single keys.

    Args:
        parser: The parser of the command.
        name: Name of the argument for the file.
        description: Help text of the argument.
        optional: True if the argument may be left out.
    """
    parser.add_argument(name, help=description, nargs="?" if optional else None)
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="change single settings"
    )


def show_log() -> None:
    """Print our own events and the warnings of other packages, above any progress bar."""
    logging.basicConfig(handlers=[LogHandler()], format="%(message)s")
    for ours in ("trainer", "transforms"):
        logging.getLogger(ours).setLevel(logging.INFO)


def check_temporary_folder() -> None:
    """End this process with a sentence if no folder for temporary files can be written to.

    Commands call it before they import torch, which cannot even be imported without one.
    """
    try:
        temporary_folder()
    except StorageError as error:
        print(error, file=sys.stderr)
        sys.exit(UNFINISHED)


def run_command(
    work: Callable[[], str], endings: Sequence[Ending] = ENDINGS, *, every_rank: bool = False
) -> int:
    """Run a command, print its last line and return its exit code.

    The line goes to standard output after success and to standard error otherwise. Errors without
    an ending are bugs; they are raised again.

    Args:
        work: The command; returns the last line.
        endings: Endings of the command; the first that fits the error is used.
        every_rank: Print the last line on every rank, whatever the ending; by default rank 0
            prints it, and other ranks only where the ending says so.
    """
    speaks = every_rank or os.environ.get("RANK", "0") == "0"
    try:
        line = work()
    except BaseException as error:
        ending = next((ending for ending in endings if isinstance(error, ending.error)), None)
        if ending is None:
            raise
        if speaks or ending.every_rank:
            print(redacted(ending.line.format(error)), file=sys.stderr)
        return ending.code
    if speaks:
        print(redacted(line))
    return OK
