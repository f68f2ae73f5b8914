"""`torchrun` with the exit code of the training.

    python -m trainer.launch [options of torchrun] -m trainer.train CONFIG [key=value ...]

`torchrun` itself exits with 1 for any failure, so a job manager cannot tell a wrong config from a
machine that was taken away. This command exits with the code of the ranks: 0, all steps are done;
1, data, storage or a rank failed: fix the cause, then start it again; 2, a setting is wrong; 3, a
loss or gradient is not finite; 75, start it again. After a signal the code is 75 if the ranks have
saved a checkpoint since the start, otherwise 1. `torchrun`'s summary of the ranks is printed if one
of them has failed with 1 or died; otherwise the last lines of the ranks say what to do.

Options are those of `torchrun`. Two defaults differ: `--signals-to-handle=SIGTERM,SIGINT,SIGUSR1`
forwards the signals that the training handles, and `--shutdown-timeout=110` gives the ranks 110 s
to save a checkpoint (`torchrun` kills them after 30 s).
"""

if __name__ == "__main__":
    from trainer import cli

    cli.check_temporary_folder()

import argparse
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from trainer import cli
from trainer.training.progress import progress_of_ranks
from transforms.core.errors import StorageError
from transforms.core.exit_codes import NOT_FINITE, OK, RESTART, UNFINISHED, WRONG_CONFIG
from transforms.core.scratch import scratch_folder

LOCALHOST = "127.0.0.1"
DEFAULTS = {"signals_to_handle": "SIGTERM,SIGINT,SIGUSR1", "shutdown_timeout": 110}


def exit_code(codes: Collection[int]) -> int:
    """Return one exit code for several failed ranks, in whichever order they failed.

    Args:
        codes: Exit codes of the ranks, negative for a signal. SIGTERM may come from `torchrun`,
            which ends the other ranks once one has failed.
    """
    for certain in (WRONG_CONFIG, NOT_FINITE):
        if certain in codes:
            return certain
    exited = {code for code in codes if code > 0}
    killed = {code for code in codes if code < 0} - {-signal.SIGTERM}
    return RESTART if exited == {RESTART} and not killed else UNFINISHED


def rank_codes(failures: Mapping[int, ProcessFailure]) -> str:
    """Return the exit code or signal of each failed rank, as one line of text."""
    codes = (
        f"rank {rank}: {failure.exitcode if failure.exitcode > 0 else failure.signal_name()}"
        for rank, failure in sorted(failures.items())
    )
    return ", ".join(codes)


def parser() -> argparse.ArgumentParser:
    """Return the parser of `torchrun`, with our defaults, and our help before its own."""
    options: argparse.ArgumentParser = run.get_args_parser()
    options.usage = "python -m trainer.launch [options] -m trainer.train CONFIG [key=value ...]"
    options.description = __doc__
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.set_defaults(**DEFAULTS)
    cli.add_version(options)
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    try:
        options = parser().parse_args(arguments)
        if options.nnodes not in ("1", "1:1") and not (
            options.rdzv_endpoint or options.master_addr != LOCALHOST
        ):
            raise ValueError(
                f"--nnodes={options.nnodes} needs --master-addr=HOST, the first machine, and on "
                "each machine its --node-rank (or --rdzv-endpoint)"
            )
        if options.nproc_per_node != "1":
            # As torchrun does, without its warning.
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        with scratch_folder() as folder:
            # torchrun makes a folder for logs that are not wanted, and leaves it behind.
            options.log_dir = options.log_dir or folder
            return _run(options, folder)
    except StorageError as error:
        print(error, file=sys.stderr)
        return UNFINISHED
    except ValueError as error:  # torchrun raises it for a wrong option.
        print(f"The launcher's options do not fit: {error}", file=sys.stderr)
        return WRONG_CONFIG


def _run(options: argparse.Namespace, folder: str) -> int:
    """Run the ranks of this machine; return the exit code.

    Args:
        options: Options of `torchrun`.
        folder: An empty folder.
    """
    with progress_of_ranks(folder) as has_progress:
        try:
            run.run(options)
        except ChildFailedError as error:
            code = exit_code({failure.exitcode for failure in error.failures.values()})
            short = f"The launcher's exit code is {code} ({rank_codes(error.failures)})."
            print(error if code == UNFINISHED else short, file=sys.stderr)
            return code
        except SignalException as error:
            code, saved = (RESTART, "a") if has_progress() else (UNFINISHED, "no")
            reason = f"{error.sigval.name}; this start saved {saved} checkpoint"
            print(f"The launcher's exit code is {code} ({reason}).", file=sys.stderr)
            return code
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
