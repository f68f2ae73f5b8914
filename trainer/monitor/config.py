"""Config of the monitor."""

from pydantic import PositiveInt

from transforms.core.config import Config, no_fingerprint


class MonitorConfig(Config):
    """Online kNN, TensorBoard and Weights & Biases; losses and speed are always logged."""

    knn_every: PositiveInt | None = no_fingerprint(None)
    """Steps between two online kNN evaluations on labelled pictures; null leaves them out."""
    knn_dataset: str = no_fingerprint("drawings")
    """Data set of online kNN: `drawings`, `fashion-mnist` or `folder:PATH`."""
    knn_pictures: PositiveInt = no_fingerprint(2000)
    """Maximum number of pictures that online kNN uses of each split."""
    tensorboard: bool = no_fingerprint(True)
    """Write `<run>/train/tensorboard` if the package is installed and the run is on disk."""
    wandb_project: str | None = no_fingerprint(None)
    """Project of Weights & Biases to report to; null reports nothing there."""
