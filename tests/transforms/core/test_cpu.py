"""Recognition of processors on which bfloat16 is slow."""

import platform
from pathlib import Path

import pytest
import torch

from transforms.core import cpu


@pytest.mark.parametrize(
    ("flags", "slow"),
    [
        ("flags\t\t: fpu sse4_2 avx avx2 fma\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512bw avx512_bf16\n", False),
        ("flags\t\t: fpu avx2 avx_vnni avx_ne_convert\n", False),
        ("processor\t: 0\n", False),
    ],
)
def test_an_x86_without_avx_512_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, slow: bool
) -> None:
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    assert not cpu.bfloat16_is_slow(), "without the file the processor is unknown"
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}processor\t: 1\n")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert cpu.bfloat16_is_slow() == slow
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not cpu.bfloat16_is_slow()


def test_torch_says_the_same_of_this_machine() -> None:
    if platform.machine() != "x86_64" or not cpu.CPUINFO.exists():
        pytest.skip("needs Linux on x86")
    assert cpu.bfloat16_is_slow() != torch.ops.mkldnn._is_mkldnn_bf16_supported()
