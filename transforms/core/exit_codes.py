"""What the training command's exit codes say to whoever might start it again.

`trainer.launch` passes them on from the ranks; a job manager goes by them (see
`docker/kubernetes/trainer.yaml`).
"""

OK = 0
"""All steps are done."""
UNFINISHED = 1
"""Steps are left, since data or storage failed, or a rank of this machine died: mend it, then start
again."""
WRONG_CONFIG = 2
"""A setting is wrong, and will be the next time."""
NOT_FINITE = 3
"""A loss or a gradient is not finite, and will be the next time unless something is changed."""
RESTART = 75
"""A signal stopped it, or a rank of another machine is gone: start it again. `sysexits.h` calls 75
a temporary failure."""
