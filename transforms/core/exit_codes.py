"""Exit codes of all commands: what a job manager may do next.

`trainer.launch` passes the codes of its ranks on (see also `docker/kubernetes/trainer.yaml`).
"""

OK = 0
"""Everything that was asked for is done."""
UNFINISHED = 1
"""Work is left: data or storage failed, the engine hung, or a rank of this machine died. Fix the
cause, then run the same command again."""
WRONG_CONFIG = 2
"""A setting is wrong. The same command fails again."""
NOT_FINITE = 3
"""A loss or a gradient is not finite. The same command fails again unless something is changed."""
RESTART = 75
"""A signal stopped a training, its loader processes died, or a rank of another machine is lost, and
this start of the training has saved a checkpoint: run the same command again. Without a checkpoint
the code is `UNFINISHED`, so that nothing that always fails is started again forever. `sysexits.h`
calls 75 a temporary failure."""
INTERRUPTED = 130
"""Ctrl-C stopped a batch job. Committed shards are kept: run the same command again."""
TERMINATED = 143
"""SIGTERM stopped a batch job. Committed shards are kept: run the same command again. It is the
code that a shell and Kubernetes report for a process that SIGTERM has ended, 128 + 15."""
