"""Beam pipeline options out of what the command line gave.

Beam's own flags choose the runner (`--runner=FlinkRunner --flink_master=...`); nothing in a stage
knows which. With none, stages run in this process on Beam's direct runner.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transforms.core.errors import ConfigError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

DIRECT_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""The engine inside Beam's DirectRunner. The name `DirectRunner` itself first tries to download
another runner's binary, which stalls where there is no way out, and may run something else."""

LOCAL_RUNNERS = {"", "DirectRunner", "FnApiRunner", DIRECT_RUNNER}
_PROJECT = Path(__file__).resolve().parent.parent


def beam_options(flags: Sequence[str]) -> "PipelineOptions":
    """Options for one pipeline.

    Args:
        flags: Beam's own `--name=value` flags as the user gave them.

    Raises:
        ConfigError: A flag that Beam does not know.
    """
    from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions

    # A worker's failure comes back as an exception; Beam would also print its traceback.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    options = PipelineOptions(list(flags))
    unknown = _unknown_flags(options, flags)
    if unknown:
        raise ConfigError(f"unknown flag {unknown[0]!r}: expected a flag of Beam, or key=value")
    standard = options.view_as(StandardOptions)
    if (standard.runner or "") in LOCAL_RUNNERS:
        standard.runner = DIRECT_RUNNER
    setup = options.view_as(SetupOptions)
    # Classes are found by import in the workers, so nothing of the launching session is shipped.
    setup.save_main_session = False
    if standard.runner == "DataflowRunner" and not setup.setup_file:
        setup.setup_file = str(_PROJECT / "setup.py")
    return options


def runs_here(flags: Sequence[str]) -> bool:
    """Whether a stage runs on this machine, and not on workers with other devices."""
    runners = [flag.partition("=")[2] for flag in flags if flag.startswith("--runner")]
    return all(runner in LOCAL_RUNNERS for runner in runners)


def _unknown_flags(options: "PipelineOptions", flags: Sequence[str]) -> list[str]:
    known = set(options.get_all_options(retain_unknown_options=False))
    names = (flag.removeprefix("--").partition("=")[0] for flag in flags if flag.startswith("--"))
    return [f"--{name}" for name in names if not {name, name.removeprefix("no_")} & known]
