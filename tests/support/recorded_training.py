"""Training command that records the captions of each step, and can stop itself at a step.

    python -m tests.support.recorded_training FOLDER SIGNAL STEP CONFIG [key=value ...]

When step STEP begins, each rank sends SIGNAL (SIGTERM, SIGKILL) to itself; "-" sends none.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from trainer import distributed, train
from trainer.data.batch import Batch, hex_ids
from trainer.training.step import Training


def captions_of_steps(folder: Path) -> dict[int, list[str]]:
    """Return step -> its captions on all ranks, sorted."""
    steps: dict[int, list[str]] = {}
    for path in sorted(folder.iterdir()):
        step = int(path.name.split("-")[0])
        steps[step] = sorted([*steps.get(step, []), *json.loads(path.read_text())])
    return steps


def main(folder: str, name: str, step: str, *arguments: str) -> int:
    """Run the command; return its exit code."""
    update = Training.update
    Path(folder).mkdir(exist_ok=True)

    def recorded(self: Training, batch: Batch) -> Any:
        if name != "-" and self.step == int(step):
            os.kill(os.getpid(), signal.Signals[name])
        path = Path(folder, f"{self.step:09d}-{distributed.rank()}")
        path.write_text(json.dumps(hex_ids(batch.caption_ids)))
        return update(self, batch)

    setattr(Training, "update", recorded)  # noqa: B010
    return train.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
