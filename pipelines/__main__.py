"""The command line of the batch jobs: `python -m pipelines STAGE CONFIG [key=value ...] [flags]`.

Installed as `synclr`. Nothing below this module reads argv or the environment.
"""

import importlib
import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from transforms.core.exit_codes import INTERRUPTED, OK, UNFINISHED, WRONG_CONFIG

if TYPE_CHECKING:
    from transforms.core.config import Config

JOBS = {
    "concepts": "check a concept list and say what it holds",
    "backgrounds": "find plausible places for every concept with a language model",
    "captions": "write captions about concepts with a language model",
    "curate": "remove duplicate captions, put the rest in random order, cut equal shards",
    "images": "paint the images of every caption with a diffusion model",
    "retry-failed": "paint the captions that failed again, with other seeds",
    "report": "write one HTML page about a run",
    "status": "how far each stage of a run is, how fast, what failed",
    "verify": "check every file of a run against its commit records",
    "index": "rebuild an index from the commit records",
}
"""Each job is the module of its name, with `CONFIG` (its config class) and `run(config, flags)`."""

OF_A_RUN = {"report", "status", "verify", "index"}
"""Jobs that take the folder of a run in place of a config file."""

USAGE = """\
usage: python -m pipelines STAGE CONFIG [key=value ...] [--beam_flag=value ...]
       python -m pipelines report|status|verify|index RUN [key=value ...]

stages:
{jobs}

CONFIG is a YAML file, RUN the folder or URL of a run; `key=value` overrides a key, dots reach into
sections. Flags go to Apache Beam: --runner=FlinkRunner --flink_master=HOST:PORT,
--runner=DataflowRunner ... ; with none the stage runs in this process.
`python -m pipelines STAGE --help` lists the keys of a stage.

exit code: 0 everything asked for is committed; 1 work is left undone, the last line says what is
missing and how to go on; 2 the config is wrong; 130 interrupted by Ctrl-C: go on with the same
command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        jobs = "\n".join(f"  {name:<13} {text}" for name, text in JOBS.items())
        print(USAGE.format(jobs=jobs))
        return OK if arguments else WRONG_CONFIG
    job, *rest = arguments
    if job not in JOBS:
        return _fail(f"unknown stage {job!r}: expected one of {', '.join(JOBS)}", WRONG_CONFIG)
    if "-h" in rest or "--help" in rest:
        return _help(job)
    flags = [argument for argument in rest if argument.startswith("--")]
    words = [argument for argument in rest if not argument.startswith("--")]
    if not words or "=" in words[0]:
        kind = "RUN" if job in OF_A_RUN else "CONFIG"
        what = "the folder of a run" if job in OF_A_RUN else "a config file"
        return _fail(f"{job} needs {what}: python -m pipelines {job} {kind}", WRONG_CONFIG)
    return _run(job, words[0], words[1:], flags)


def _config(job: str, cls: "type[Config]", path: str, overrides: Sequence[str]) -> "Config":
    from transforms.core.config import load_config, parse_config

    if job in OF_A_RUN and not path.endswith((".yaml", ".yml")):
        # As JSON, which is YAML: a folder may be called 123 or yes.
        text = json.dumps({"run": path}, ensure_ascii=False)
        return parse_config(cls, text, "command line", overrides)
    return load_config(cls, path, overrides)


def _run(job: str, path: str, overrides: Sequence[str], flags: Sequence[str]) -> int:
    from transforms.core.errors import ConfigError, DamagedFileError, StorageError, UnfinishedError

    module = _module(job)
    try:
        module.run(_config(job, module.CONFIG, path, overrides), flags)
    except ConfigError as error:
        return _fail(str(error), WRONG_CONFIG)
    except (UnfinishedError, StorageError, DamagedFileError) as error:
        return _fail(str(error), UNFINISHED)
    return OK


def _module(job: str) -> ModuleType:
    name = "report.command" if job == "report" else job.replace("-", "_")
    return importlib.import_module(f"pipelines.{name}")


def _help(job: str) -> int:
    from transforms.core.config_keys import describe

    module = _module(job)
    takes = "RUN [key=value ...]"
    if job not in OF_A_RUN:
        takes = "CONFIG [key=value ...] [--beam_flag=value ...]"
    print(f"python -m pipelines {job} {takes}\n")
    print(f"{(module.__doc__ or '').strip()}\n\nkeys:\n{describe(module.CONFIG)}")
    return OK


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return code


def _interrupted(*_: object) -> None:
    # Everything committed is whole, so there is nothing to tidy up; an exception would travel
    # through Beam and the engines, whose threads keep the process alive until their shard is done.
    os.write(2, b"\ninterrupted; run the same command again to go on\n")
    _exit(INTERRUPTED)


def _exit(code: int) -> NoReturn:
    """Exit at once: engines leave threads that would hold it up, and processes that would stay."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def _show_log() -> None:
    """Our own events, and the warnings of others."""
    from transforms.core.progress import LogHandler

    logging.basicConfig(handlers=[LogHandler()], format="%(message)s")
    for ours in ("pipelines", "transforms"):
        logging.getLogger(ours).setLevel(logging.INFO)


def entry() -> None:
    """The process's entry."""
    signal.signal(signal.SIGINT, _interrupted)
    _show_log()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    _exit(code)


if __name__ == "__main__":
    entry()
