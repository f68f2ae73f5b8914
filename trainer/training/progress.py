"""Progress of one start of a training: whether it has saved a checkpoint.

Exit code 75 lets a job manager start a training again, without counting how often. So it needs
progress: a checkpoint of a later step than the one from which this start continued. Otherwise a
training that always fails would be started again forever. With progress, a training exits with 75
at most as often as it has steps.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.training.errors import NothingSavedError

VARIABLE = "SYNCLR_PROGRESS_FILE"
"""Environment variable: a file that the ranks of a launcher create once they have made progress."""


class Progress:
    """Flag of this start of a training: it has saved a checkpoint. Other ranks learn it in time."""

    def __init__(self) -> None:
        self.made = False

    def make(self) -> None:
        """Note that a checkpoint of this start is complete."""
        if not self.made:
            self.made = True
            if path := os.environ.get(VARIABLE):
                with contextlib.suppress(OSError):
                    Path(path).touch()

    @contextlib.contextmanager
    def needed_after(self, *errors: type[BaseException]) -> Iterator[None]:
        """Replace errors after which a training may be started again, unless there is progress.

        Args:
            errors: Classes of the errors.

        Raises:
            NothingSavedError: One of these errors was raised, and no checkpoint was saved.
        """
        try:
            yield
        except errors as error:
            if self.made:
                raise
            reason = f"{error}; this start saved no checkpoint; once that is fixed"
            if isinstance(error, KeyboardInterrupt):
                reason = "interrupted before this start saved a checkpoint"
            raise NothingSavedError(reason) from error


@contextlib.contextmanager
def progress_of_ranks(folder: str) -> Iterator[Callable[[], bool]]:
    """Watch the processes that the body starts; yield a function: have they made progress?

    Args:
        folder: An empty folder on a disk of this machine.
    """
    path = os.path.join(folder, "progress")
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = path
    try:
        yield lambda: os.path.exists(path)
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before
