"""Properties of the processor of this machine."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512bw", "avx_ne_convert"})
"""Flags of x86 processors on which torch multiplies bfloat16 natively."""

SLOW_BFLOAT16 = (
    "This processor has no AVX-512: bfloat16 takes it tens of times as long as float32. Set %s."
)
"""Warning for a log; %s is the setting that is fast."""


def bfloat16_is_slow() -> bool:
    """Return whether torch's bfloat16 products are slower than float32 here, 45 times as measured.

    Only x86 on Linux is recognised; elsewhere the answer is False.
    """
    if platform.machine() != "x86_64":
        return False
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    return flags is not None and BFLOAT16_FLAGS.isdisjoint(flags)
