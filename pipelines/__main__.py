"""Command line of the batch jobs: `python -m pipelines JOB CONFIG [key=value ...] [--flag ...]`.

Installed as `synclr`. Nothing below this module reads argv or the environment.
"""

import importlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from transforms.core.exit_codes import INTERRUPTED, OK, TERMINATED, UNFINISHED, WRONG_CONFIG
from transforms.core.stages import STAGES

if TYPE_CHECKING:
    from transforms.core.config import Config


class Job(NamedTuple):
    """A command of `python -m pipelines`."""

    module: str
    """Module below `pipelines`, with `CONFIG` (its config class) and `run(config, flags)`."""
    help: str
    """What it does, one line."""
    takes_run: bool = False
    """Whether it takes the folder of a run in place of a config file."""


LIST_JOBS = {"concepts": Job("concepts", "check a concept list and show what it holds")}
"""Jobs on the input of the stages."""

RUN_JOBS = {
    "retry-failed": Job("retry_failed", "paint the captions that failed again, with other seeds"),
    "report": Job("report.command", "write one HTML page about a run", takes_run=True),
    "status": Job("status", "show progress, rate and failures of each stage", takes_run=True),
    "verify": Job("verify", "check every file of a run against its commit records", takes_run=True),
    "index": Job("index", "rebuild an index from the commit records", takes_run=True),
}
"""Jobs on the output of the stages."""

USAGE = """\
usage: python -m pipelines JOB CONFIG [key=value ...] [--beam_flag value ...]
       python -m pipelines {run_jobs} RUN [key=value ...]
       python -m pipelines --version

jobs:
{jobs}

CONFIG is a YAML file, RUN the folder or URL of a run; `key=value` overrides a key, dots reach into
sections. Flags go to Apache Beam: --runner FlinkRunner --flink_master HOST:PORT,
--runner DataflowRunner ... ; without flags a stage runs in this process.
`python -m pipelines JOB --help` lists the keys of a job.

exit code: 0 everything asked for is committed; 1 work is left, the last line says what is missing
and how to continue; 2 the config is wrong; 130 stopped by Ctrl-C, 143 stopped by SIGTERM: run the
same command again to continue."""


def jobs() -> dict[str, Job]:
    """Return all jobs by name: one for each stage of `STAGES`, and the others."""
    stages = {k.command: Job(k.command.replace("-", "_"), k.help) for k in STAGES.values()}
    return {**LIST_JOBS, **stages, **RUN_JOBS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = jobs()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(known))
        return OK if arguments else WRONG_CONFIG
    if arguments[0] == "--version":
        print(f"synclr {importlib.metadata.version('synclr')}")
        return OK
    name, *rest = arguments
    if name not in known:
        return _fail(f"unknown job {name!r}: expected one of {', '.join(known)}", WRONG_CONFIG)
    if "-h" in rest or "--help" in rest:
        return _help(name, known[name])
    if "--version" in rest:
        return main(["--version"])
    return _run(name, known[name], rest)


def _run(name: str, job: Job, arguments: Sequence[str]) -> int:
    from pipelines.options import split_flags
    from transforms.core.errors import ConfigError, DamagedFileError, StorageError, UnfinishedError
    from transforms.core.scratch import temporary_folder

    if job.takes_run and "--watch" in arguments:
        arguments = [*(word for word in arguments if word != "--watch"), "watch=true"]
    try:
        words, flags = split_flags(arguments)
        if not words or "=" in words[0]:
            what = "the folder of a run" if job.takes_run else "a config file"
            word = "RUN" if job.takes_run else "CONFIG"
            raise ConfigError(f"{name} needs {what}: python -m pipelines {name} {word}")
        if not job.takes_run:
            temporary_folder()  # Beam and torch cannot even be imported without one.
        module = _module(job)
        module.run(_config(job, module.CONFIG, words[0], words[1:]), flags)
    except ConfigError as error:
        return _fail(str(error), WRONG_CONFIG)
    except (UnfinishedError, StorageError, DamagedFileError) as error:
        return _fail(str(error), UNFINISHED)
    return OK


def _config(job: Job, cls: "type[Config]", path: str, overrides: Sequence[str]) -> "Config":
    from transforms.core.config import load_config, parse_config

    if job.takes_run and not path.endswith((".yaml", ".yml")):
        # As JSON, which is YAML: a folder may be called 123 or yes.
        text = json.dumps({"run": path}, ensure_ascii=False)
        return parse_config(cls, text, "command line", overrides)
    return load_config(cls, path, overrides)


def _module(job: Job) -> ModuleType:
    return importlib.import_module(f"pipelines.{job.module}")


def _usage(known: dict[str, Job]) -> str:
    lines = "\n".join(f"  {name:<13} {job.help}" for name, job in known.items())
    run_jobs = "|".join(name for name, job in known.items() if job.takes_run)
    return USAGE.format(jobs=lines, run_jobs=run_jobs)


def _help(name: str, job: Job) -> int:
    from transforms.core.config_keys import describe

    module = _module(job)
    takes = "RUN [key=value ...]" if job.takes_run else "CONFIG [key=value ...] [--beam_flag value]"
    print(f"python -m pipelines {name} {takes}\n")
    print(f"{(module.__doc__ or '').strip()}\n\nkeys:\n{describe(module.CONFIG)}")
    return OK


def _fail(message: str, code: int) -> int:
    from transforms.core.references import redacted

    print(redacted(message), file=sys.stderr, flush=True)
    return code


def _handle_stop_signals() -> None:
    """End this process at once on Ctrl-C and on SIGTERM."""
    process = os.getpid()
    stops = {
        signal.SIGINT: (b"interrupted", INTERRUPTED),
        signal.SIGTERM: (b"stopped by SIGTERM", TERMINATED),
    }

    def stop(number: int, _: object) -> None:
        if os.getpid() != process:
            # A process that an engine forked ends as if it had no handler.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        # Committed shards are whole, so nothing has to be cleaned up. An exception would pass
        # through Beam and the engines, whose threads keep the process alive until their shard is
        # done.
        what, code = stops[signal.Signals(number)]
        os.write(2, b"\n" + what + b"; run the same command again to continue\n")
        _exit(code)

    for number in stops:
        signal.signal(number, stop)


def _exit(code: int) -> NoReturn:
    """Exit at once: engines leave threads that would delay the exit, and processes that would stay.

    Args:
        code: Exit code.
    """
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def _show_log() -> None:
    """Show our own events, and the warnings of others."""
    from transforms.core.progress import LogHandler

    logging.basicConfig(handlers=[LogHandler()], format="%(message)s")
    for ours in ("pipelines", "transforms"):
        logging.getLogger(ours).setLevel(logging.INFO)


def entry() -> None:
    """Run the command line of this process; the entry point `synclr`."""
    _handle_stop_signals()
    _show_log()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    _exit(code)


if __name__ == "__main__":
    entry()
