"""`torchrun`, but with the exit code of the training.

    python -m trainer.launch [torchrun's options] -m trainer.train CONFIG [key=value ...]

`torchrun` itself exits with 1 whatever its processes said, so that a job manager cannot tell a
wrong config from a machine that was taken away. This passes `trainer.exit_codes` on. Signals reach
the ranks as the training wants them: SIGUSR1, too, and with 110 s to save (`--shutdown-timeout`)
where `torchrun` kills after 30.
"""

import os
import signal
import sys
from collections.abc import Collection, Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from trainer.exit_codes import NOT_FINITE, OK, RESTART, UNFINISHED, WRONG_CONFIG

LOCALHOST = "127.0.0.1"
DEFAULTS = ("--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "--shutdown-timeout=110")


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


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    try:
        options = run.parse_args([*DEFAULTS, *arguments])
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
        print(error, file=sys.stderr)
        return verdict({failure.exitcode for failure in error.failures.values()})
    except SignalException:
        return RESTART
    except ValueError as error:  # How torchrun says that an option is wrong.
        print(f"The launcher's options do not fit: {error}", file=sys.stderr)
        return WRONG_CONFIG
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
