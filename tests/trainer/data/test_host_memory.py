"""A lack of memory is never taken for a broken sample: the training ends, with a sentence."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.batches import cropped, read
from tests.support.image_shards import write_images
from tests.support.paths import ROOT
from tests.support.training_runs import command, make_run
from trainer.data import batch as batch_module
from trainer.data.host_memory import is_memory_error, is_memory_left
from trainer.training.step import Training
from transforms.core.errors import StorageError
from transforms.core.exit_codes import UNFINISHED

TOO_MUCH = 1 << 60


def python_is_out_of_memory(*_: object, **__: object) -> Any:
    return bytes(TOO_MUCH)


def torch_is_out_of_memory(*_: object, **__: object) -> Any:
    return torch.empty(TOO_MUCH, dtype=torch.uint8)


def cpp_is_out_of_memory(*_: object, **__: object) -> Any:
    raise RuntimeError("std::bad_alloc")


def the_system_is_out_of_memory(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


KINDS = [
    python_is_out_of_memory,
    torch_is_out_of_memory,
    cpp_is_out_of_memory,
    the_system_is_out_of_memory,
]


@pytest.mark.parametrize("fail", KINDS)
@pytest.mark.parametrize("where", ["decode", "crop_image", "concatenate"])
def test_no_sample_is_replaced_when_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., Any], where: str
) -> None:
    write_images(tmp_path)
    monkeypatch.setattr(batch_module, where, fail)
    with pytest.raises(StorageError, match=r"samples of step 0: the machine is out of memory; low"):
        read(tmp_path, 0, 1)


@pytest.mark.parametrize("fail", KINDS)
def test_a_file_that_cannot_be_read_for_lack_of_memory_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., Any]
) -> None:
    write_images(tmp_path)
    monkeypatch.setattr("os.pread", fail)
    with pytest.raises(StorageError, match=r"out of memory|cannot read .*: Cannot allocate memory"):
        read(tmp_path, 0, 1)


@pytest.mark.parametrize("fail", KINDS[:2])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_training_exits_with_1_and_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fail: Callable[..., Any],
    workers: int,
) -> None:
    monkeypatch.setattr(batch_module, "decode", fail)
    assert command(make_run(tmp_path), f"loader.num_workers={workers}") == UNFINISHED
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("cannot load the samples of step 0: the machine is out of memory; ")


@pytest.mark.parametrize("fail", KINDS)
def test_memory_that_runs_out_in_a_step_is_a_sentence_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fail: Callable[..., Any],
) -> None:
    monkeypatch.setattr(Training, "update", fail)
    assert command(make_run(tmp_path)) == UNFINISHED
    assert "rank 0: the machine is out of memory; " in capsys.readouterr().err.splitlines()[-1]


LIMITED = """
import resource, sys
from tests.support.batches import cropped
from trainer.data.loader import LoaderConfig, batches
from transforms.core.errors import StorageError

stream = batches(
    cropped(sys.argv[1]), LoaderConfig(num_workers=0), first_step=0, last_step=9,
    captions_per_batch=1,
)
replaced = [next(stream).num_replaced for _ in range(2)]
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2 * int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    for batch in stream:
        replaced.append(batch.num_replaced)
except StorageError as error:
    print(replaced, error)
else:
    print(replaced)
"""
"""Reads two samples, then forbids itself more memory than a small image takes."""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its size in /proc")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_process_with_too_little_memory_for_an_image_replaces_nothing(
    tmp_path: Path, kind: str
) -> None:
    def paint(sample: int, number: int) -> bytes:
        buffer = io.BytesIO()
        side = 3000 if sample in order[2:] else 64
        Image.new("RGB", (side, side), (sample, 9, 9)).save(buffer, kind)
        return buffer.getvalue()

    write_images(tmp_path / "small", (6,))
    order = cropped(tmp_path / "small").sampler(range(6)).tolist()
    write_images(tmp_path / "large", (6,), paint=paint)
    alone = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "large"), str(1 << 20)],
        cwd=ROOT,
        env={**os.environ, **alone},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("[0, 0] cannot load the samples of step 2: the machine is out")


def test_other_errors_are_of_the_sample() -> None:
    for error in (RuntimeError("WebPDecodeRGB failed."), OSError(errno.EIO, "I/O"), ValueError()):
        assert not is_memory_error(error)
    assert is_memory_left()
