"""Settings that all evaluation protocols share."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from transforms.core.config import Config, Place, no_fingerprint


class EvaluateConfig(Config):
    """What is scored, on which data sets, and how.

    `trainer.evaluate.protocols.config_class` adds a section for each protocol.
    """

    run: Place = no_fingerprint()
    """Folder or URL of the run; scores are written to its `scores` folder."""
    model: Place | None = no_fingerprint(None)
    """What is scored: a checkpoint, the folder of a training or run, an exported folder,
    `timm:NAME` with timm's weights, or `timm:NAME@FILE`; null is `checkpoint`."""
    checkpoint: Place | None = no_fingerprint(None)
    """A checkpoint file or the folder of a training; null is the newest checkpoint of the run."""
    which: Literal["teacher", "student"] = "teacher"
    """Which of the checkpoint's two encoders is scored."""
    datasets: tuple[str, ...] = Field(("drawings", "fashion-mnist"), min_length=1)
    """Data sets: `drawings`, `fashion-mnist`; `folder:PATH` for your own pictures in
    PATH/train/CLASS/ and PATH/test/CLASS/ (and PATH/val/CLASS/ if there is a validation split);
    public ones in `data`, such as `torchvision:flowers102`, or `paper` for all of the paper.
    `python -m trainer.evaluate check` lists them."""
    data: Place | None = no_fingerprint(None)
    """Folder of the public data sets, each in the layout that torchvision expects."""
    num_untrained: NonNegativeInt = 3
    """Encoders with fresh weights in the untrained baseline; 0 leaves it out."""
    pixels: bool = True
    """Whether raw pixels are scored as a baseline."""
    seed: int = 0
    """Seed of the untrained encoders' weights."""
    precision: Literal["fp32", "bf16"] = no_fingerprint("fp32")
    """Arithmetic of the features: `bf16` is faster on GPUs, and rounds."""
    features: Place | None = no_fingerprint(None)
    """Folder of the computed features, which several evaluations may share and which can be deleted
    at any time; null is `<run>/features`."""
    device: Literal["auto", "cpu", "cuda"] = no_fingerprint("auto")
    """`auto` is CUDA if available, otherwise the CPU; `cuda` is an error without CUDA."""
    batch_size: PositiveInt = no_fingerprint(256)
    """Pictures per forward pass."""
    num_workers: NonNegativeInt = no_fingerprint(0)
    """Processes that decode pictures; 0 decodes in the main process, between forward passes."""
