"""The house rules that a program can check: who may import whom, sizes, names, help in a second."""

import ast
import importlib.metadata
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("transforms", "pipelines", "trainer")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERYTHING = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), ROOT / "setup.py"]

FORBIDDEN = {
    "transforms/core": (
        "apache_beam",
        "torch",
        "vllm",
        "diffusers",
        "transformers",
        "pipelines",
        "trainer",
        "transforms!core",
    ),
    "transforms": ("pipelines", "trainer"),
    "pipelines": ("trainer",),
    "trainer": ("apache_beam", "vllm", "diffusers", "pipelines", "transforms!core"),
}
"""Folder -> what nothing in it may import, not even inside a function; `transforms!core` is all of
transforms but transforms.core."""

ROOMS = {
    "trainer": (
        {"distributed", "signals"},
        {"losses"},
        {"models", "data"},
        {"execution", "optim"},
        {"objectives", "checkpoints"},
        {"evaluate"},
        {"monitor"},
        {"config"},
        {"training"},
        {"cli"},
        {"train", "launch", "replay", "export"},
    ),
    "transforms": (
        {"core"},
        {"engines", "concepts"},
        {"captions", "curation", "images"},
        {"produce", "verify"},
    ),
}
"""Package -> its rooms and modules from the bottom up. Each may import those of the levels below,
and a room also itself. What is imported for type checkers alone does not count."""

MOST_NAMES = {"trainer": 20, "transforms": 8}
"""Package -> how many names its listing may show."""

HEAVY = {"apache_beam", "diffusers", "torch", "transformers", "vllm", "sklearn", "timm"}


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def run_time_imports(path: Path) -> Iterator[str]:
    """The imports of a module without those under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        statement
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for body in node.body
        for statement in ast.walk(body)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in for_types:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import) and node not in for_types:
            yield from (alias.name for alias in node.names)


def breaks(name: str, rule: str) -> bool:
    if rule == "transforms!core":
        return name.startswith("transforms") and not name.startswith("transforms.core")
    return name == rule or name.startswith(rule + ".")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_flow_one_way(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in imports(path)
        if any(breaks(name, rule) for rule in FORBIDDEN[folder])
    ]
    assert not wrong


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_from_rooms_below(package: str) -> None:
    level = {name: number for number, names in enumerate(ROOMS[package]) for name in names}
    assert listing(package) - {"__init__", "configs"} == set(level)
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        # A command: it may use all that the other commands use.
        own = len(ROOMS[package]) if path.name == "__main__.py" else level.get(room, -1)
        for name in run_time_imports(path):
            top, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if top == package and other in level and other != room and level[other] >= own:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def listing(package: str) -> set[str]:
    """The names that the listing of a package's folder shows, without suffix."""
    entries = set((ROOT / package).iterdir()) - {ROOT / package / "__pycache__"}
    return {path.stem for path in entries if path.suffix == ".py" or any(path.glob("*.*"))}


@pytest.mark.parametrize("package", MOST_NAMES)
def test_a_listing_explains_the_house(package: str) -> None:
    assert len(listing(package) - {"__init__"}) <= MOST_NAMES[package]


def test_no_layer_names_one_above_it_in_a_string() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {node.value!r}"
        for path in sorted((ROOT / "transforms").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.partition(".")[0] in ("pipelines", "trainer")
    ]
    assert not wrong


def test_no_test_module_imports_another_test_module() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in imports(path)
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    ]
    assert not wrong, "what several tests need is in tests/support"


def test_torchvision_transforms_are_imported_by_their_v2_name() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        for name in imports(path)
        if name.startswith("torchvision.transforms")
        and name != "torchvision.transforms.v2"
        and not name.startswith("torchvision.transforms.v2.")
    ]
    assert not wrong


def test_files_and_functions_stay_short() -> None:
    long = []
    for path in EVERYTHING:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 400:
            long.append(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long


def test_no_drawer_for_everything() -> None:
    names = {path.stem for path in SOURCES}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_modules_say_what_they_are() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_no_merge_left_its_markers() -> None:
    marker = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
    files = [*EVERYTHING, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert not [path for path in files if marker.search(path.read_text(encoding="utf-8"))]


def help_seconds() -> float:
    """Return the processor time in seconds that `python -m pipelines --help` takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "pipelines", "--help"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.xdist_group("processes")
def test_help_imports_nothing_heavy_and_answers_in_a_second() -> None:
    code = (
        "import sys, pipelines.__main__ as m; m.main(['--help']); "
        f"heavy = {HEAVY!r} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    # Other work slows processor time, too, so one of several tries has to be fast.
    assert any(help_seconds() < 1.0 for _ in range(3))


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_name_has_one_owner(package: str) -> None:
    assert set(importlib.metadata.packages_distributions()[package]) == {"synclr"}
