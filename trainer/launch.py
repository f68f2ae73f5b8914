"""`torchrun`, but with the exit code of the training.

    python -m trainer.launch [torchrun's options] -m trainer.train CONFIG [key=value ...]

`torchrun` itself exits with 1 whatever its processes said, so that a job manager cannot tell a
wrong config from a machine that was taken away. This passes the ranks' code on: 0, all steps are
done; 1, data, storage or a rank failed: mend it, then start again; 2, a setting is wrong; 3, a loss
or gradient is not finite; 75, start it again. Only for 1 is there `torchrun`'s summary of the
ranks: for the others their last lines say all.

Options are `torchrun`'s, with two other defaults, so that signals reach the ranks as the training
wants them: `--signals-to-handle=SIGTERM,SIGINT,SIGUSR1`, and `--shutdown-timeout=110`, the seconds
to save, where `torchrun` kills after 30.
"""

import argparse
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from transforms.core.exit_codes import NOT_FINITE, OK, RESTART, UNFINISHED, WRONG_CONFIG

LOCALHOST = "127.0.0.1"
DEFAULTS = {"signals_to_handle": "SIGTERM,SIGINT,SIGUSR1", "shutdown_timeout": 110}


def verdict(codes: Collection[int]) -> int:
    """One exit code for several ranks that failed, whichever failed first.

    Args:
        codes: The ranks' exit codes; negative are signals, some of them `torchrun`'s, which ends
            the other ranks as soon as one has failed.
    """
    for certain in (WRONG_CONFIG, NOT_FINITE):
        if certain in codes:
            return certain
    exited = {code for code in codes if code > 0}
    killed = {code for code in codes if code < 0} - {-signal.SIGTERM}
    return RESTART if exited == {RESTART} and not killed else UNFINISHED


def said_of(failures: Mapping[int, ProcessFailure]) -> str:
    """How ranks ended, on one line; of one that a signal killed, the signal."""
    endings = (
        f"rank {rank}: {failure.exitcode if failure.exitcode > 0 else failure.signal_name()}"
        for rank, failure in sorted(failures.items())
    )
    return ", ".join(endings)


def parser() -> argparse.ArgumentParser:
    """`torchrun`'s, with our defaults and our help before its own."""
    options: argparse.ArgumentParser = run.get_args_parser()
    options.usage = "python -m trainer.launch [options] -m trainer.train CONFIG [key=value ...]"
    options.description = __doc__
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.set_defaults(**DEFAULTS)
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
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
            os.environ.setdefault("OMP_NUM_THREADS", "1")  # As torchrun does, in twelve lines.
        run.run(options)
    except ChildFailedError as error:
        code = verdict({failure.exitcode for failure in error.failures.values()})
        short = f"The launcher's exit code is {code} ({said_of(error.failures)})."
        print(error if code == UNFINISHED else short, file=sys.stderr)
        return code
    except SignalException:
        return RESTART
    except ValueError as error:  # How torchrun says that an option is wrong.
        print(f"The launcher's options do not fit: {error}", file=sys.stderr)
        return WRONG_CONFIG
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
