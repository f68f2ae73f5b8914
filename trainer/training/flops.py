"""Floating-point operations of a training step, and the peak of known devices.

Model FLOP utilisation is the operations of a step over the time of the step and the peak of the
device. Only matrix products are counted (see `trainer.models.flops`), so it is a lower bound.
"""

from trainer.config import TrainConfig
from trainer.models.flops import BACKWARD, FORWARD, encoder_flops
from trainer.objectives.registry import objective_of

PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Part of a device's name -> its dense bfloat16 peak, from the makers' data sheets. The first match
counts."""


def peak_flops(device_name: str) -> float | None:
    """Return the bfloat16 peak of a device in operations per second, None if it is not known."""
    for part, tflops in PEAK_TFLOPS.items():
        if part in device_name:
            return tflops * 1e12
    return None


def image_flops(config: TrainConfig) -> float:
    """Return the operations of a training step for one image with all its crops."""
    model, crops = config.model, config.crops
    student = crops.num_global * encoder_flops(model, model.image_size)
    student += crops.num_local * encoder_flops(model, crops.local_size)
    return (FORWARD + BACKWARD) * student + objective_of(config).flops_beyond_student(config)
