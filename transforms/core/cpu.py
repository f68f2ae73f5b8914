"""What this machine's processor is good at."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512bw", "avx_ne_convert"})
"""Of x86 processors that torch multiplies bfloat16 on without a detour."""

SLOW_BFLOAT16 = (
    "This processor has no AVX-512: bfloat16 takes it tens of times as long as float32. Set %s."
)
"""For a log; the setting that makes it fast goes in."""


def bfloat16_is_slow() -> bool:
    """Whether torch's bfloat16 products are slower than float32 here, by 45 times (measured).

    Known of x86 on Linux; False elsewhere.
    """
    if platform.machine() != "x86_64":
        return False
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    return flags is not None and BFLOAT16_FLAGS.isdisjoint(flags)
