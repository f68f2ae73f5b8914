"""The training command, but loader processes die as they prepare the third step, always.

    python -m tests.support.deadly_training CONFIG [key=value ...]

For instance because one of its samples needs more memory than the machine has.
"""

import os
import signal
import sys
import time

from trainer import train
from trainer.data import loader
from trainer.data.batch import Batch, CroppedSamples
from trainer.data.sampler import BatchIndices


def main(*arguments: str) -> int:
    """Run the command; return its exit code."""
    batch = CroppedSamples.batch

    def deadly(self: CroppedSamples, indices: BatchIndices) -> Batch:
        if indices.positions.max() >= 4 * 2:
            time.sleep(1)  # The batch before is sent.
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(self, indices)

    loader.MAX_RESTARTS = 0
    setattr(CroppedSamples, "batch", deadly)  # noqa: B010
    return train.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
