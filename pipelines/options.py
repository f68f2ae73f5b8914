"""Flags of the command line, and the Beam pipeline options that they give.

Beam's own flags choose the runner (`--runner FlinkRunner --flink_master ...`); nothing in a stage
depends on it. Without flags, stages run in this process on Beam's direct runner.
"""

import logging
from argparse import Action
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transforms.core.errors import ConfigError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

DIRECT_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""The engine inside Beam's DirectRunner. The name `DirectRunner` first tries to download the binary
of another runner, which hangs on a machine without internet, and may run something else."""

LOCAL_RUNNERS = {"", "DirectRunner", "FnApiRunner", DIRECT_RUNNER}
_PROJECT = Path(__file__).resolve().parent.parent


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide arguments into words and Beam's flags, each flag as `--name=value` or `--name`.

    `--name value` is accepted as well, where Beam's parser says that the flag takes a value.

    Raises:
        ConfigError: A flag without "=" is unknown to Beam, or its value is missing.
    """
    words: list[str] = []
    flags: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            words.append(argument)
            continue
        num_values = 0 if "=" in argument else _num_values(argument)
        if num_values == 0:
            flags.append(argument)
        elif rest and not rest[0].startswith("--"):
            flags.append(f"{argument}={rest.pop(0)}")
        elif num_values == "?":
            flags.append(argument)
        else:
            raise ConfigError(f"flag {argument!r} needs a value: {argument}=VALUE")
    return words, flags


def beam_options(flags: Sequence[str]) -> "PipelineOptions":
    """Return the options of one pipeline.

    Args:
        flags: Beam's flags, as `split_flags` returns them.

    Raises:
        ConfigError: Beam does not know a flag or the runner, or the flag is
            `--direct_running_mode` with processes: Beam waits for ever when one of them dies.
    """
    from apache_beam.options.pipeline_options import (
        DirectOptions,
        PipelineOptions,
        SetupOptions,
        StandardOptions,
    )

    # The failure of a worker is raised as an exception; Beam would also print its traceback.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    options = PipelineOptions(list(flags))
    known = set(options.get_all_options(retain_unknown_options=False))
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0]
        if not {name, name.removeprefix("no_")} & known:
            raise _unknown(f"--{name}")
    standard = options.view_as(StandardOptions)
    if (standard.runner or "") in LOCAL_RUNNERS:
        standard.runner = DIRECT_RUNNER
        if options.view_as(DirectOptions).direct_running_mode == "multi_processing":
            raise ConfigError(
                "flag '--direct_running_mode' has value 'multi_processing', with which Beam waits "
                "for ever when a worker process dies: leave the flag out, and run the same command "
                "several times at once, each of which works on other shards"
            )
    else:
        _check_runner(standard.runner)
    setup = options.view_as(SetupOptions)
    # Workers find classes by import, so nothing of the launching session is sent to them.
    setup.save_main_session = False
    if standard.runner == "DataflowRunner" and not setup.setup_file:
        setup.setup_file = str(_PROJECT / "setup.py")
    return options


def runs_here(flags: Sequence[str]) -> bool:
    """Return whether a stage runs on this machine, and not on workers with other devices."""
    runners = [flag.partition("=")[2] for flag in flags if flag.startswith("--runner=")]
    return all(runner in LOCAL_RUNNERS for runner in runners)


def _check_runner(name: str) -> None:
    from apache_beam.runners import create_runner

    try:
        create_runner(name)
    except (ValueError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"flag '--runner' has value {name!r}: {reason}") from error


def _num_values(flag: str) -> int | str | None:
    """Return how many values Beam's parser takes for a flag, in the terms of argparse (`nargs`)."""
    from apache_beam.options.pipeline_options import PipelineOptions

    actions: dict[str, Action] = {}

    def copy_actions(parser: Any) -> None:
        actions.update(parser._option_string_actions)

    PipelineOptions([]).get_all_options(add_extra_args_fn=copy_actions)
    if flag not in actions:
        raise _unknown(flag)
    return actions[flag].nargs


def _unknown(flag: str) -> ConfigError:
    return ConfigError(f"unknown flag {flag!r}: expected a flag of Beam, or key=value")
