"""Errors that end a training; the message of each is one sentence for the user."""

from transforms.core.errors import ConfigError


class TrainingError(RuntimeError):
    """The training cannot continue."""


class StoppedError(TrainingError):
    """A signal stopped the training; its state is saved."""


class NothingSavedError(TrainingError):
    """The training could be started again, but this start of it has saved no checkpoint."""


class NotFiniteError(TrainingError):
    """A loss or a gradient is not finite.

    Attributes:
        step: The first step where it happened. Weights, optimiser and teacher are as before that
            step, except for the running estimates of batch norms, which no training reads.
        caption_ids: Caption ids of that step's batch over all ranks, 16 hex digits each.
    """

    def __init__(self, message: str, step: int, caption_ids: list[str]) -> None:
        super().__init__(message)
        self.step = step
        self.caption_ids = caption_ids


class RankError(TrainingError):
    """Storage or data failed on one of several ranks; the sentence names the rank."""


class RankConfigError(ConfigError):
    """A setting does not fit this rank, for instance its device; other ranks may not know."""
