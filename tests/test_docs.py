"""The documents name only what exists: links, make targets, commands, config keys, files."""

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.__main__ import jobs
from tests.support.paths import ROOT
from trainer.config import TrainConfig
from trainer.evaluate.protocols import config_class
from transforms.core.config import Config, load_config
from transforms.core.config_keys import leaves

FOLDERS = ("docs", "docker", "benchmarks", "requirements", "pipelines", "trainer")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
)
MANUALS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
TRAINER_JOBS: dict[str, type[Config]] = {
    "trainer.train": TrainConfig,
    "trainer.evaluate": config_class(),
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_of(path: Path) -> Iterator[str]:
    """Yield the lines of code blocks, continued lines joined, and the code inside sentences."""
    fenced = False
    prose = []
    lines = iter(text_of(path).splitlines())
    for line in lines:
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            while line.endswith("\\"):
                line = line[:-1] + next(lines).strip()
            yield line.partition("  #")[0].strip()
        else:
            prose.append(line)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", "\n".join(prose)))


def commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the module and the arguments of each `python -m` in a document."""
    for line in code_of(path):
        _, found, rest = line.partition("python -m ")
        if found:
            module, *arguments = rest.partition(";")[0].split()
            if module == "trainer.launch" and "-m" in arguments:
                yield module, []
                module, *arguments = arguments[arguments.index("-m") + 1 :]
            yield module, arguments


def config_of(job: str) -> type[Config]:
    """Return the config class of a batch job."""
    module = "report.command" if job == "report" else job.replace("-", "_")
    config: type[Config] = importlib.import_module(f"pipelines.{module}").CONFIG
    return config


def anchors(path: Path) -> set[str]:
    """Return the names that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        address, _, anchor = link.partition("#")
        if ":" in address:
            continue
        target = (document.parent / address).resolve() if address else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("document", MANUALS, ids=name)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+(?: [a-z-]+)*):", text_of(ROOT / "Makefile"), re.MULTILINE))
    targets = {target for line in targets for target in line.split()}
    named = set()
    for line in code_of(document):
        if found := re.match(r"make((?: [a-z-]+(?=\s|$))+)", line):
            named |= set(found[1].split())
    assert named <= targets


@pytest.mark.parametrize("document", [m for m in MANUALS if m.name != "extend.md"], ids=name)
def test_commands_exist_and_their_configs_load(document: Path) -> None:
    for module, arguments in commands(document):
        assert importlib.util.find_spec(module), module
        config: type[Config] | None = TRAINER_JOBS.get(module)
        if module == "pipelines" and re.match(r"[a-z]", "".join(arguments)):
            job, *arguments = arguments
            assert job in jobs()
            config = config_of(job)
        overrides = [word for word in arguments if re.match(r"[a-z_.]+=", word)]
        if config is None:
            continue
        for file in (word for word in arguments if word.endswith(".yaml")):
            load_config(config, str(ROOT / file), [word for word in overrides if "..." not in word])
        keys = {key for key, _ in leaves(config)}
        assert {word.partition("=")[0] for word in overrides} <= keys, arguments


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_config_keys_exist(document: Path) -> None:
    configs = (*map(config_of, jobs()), *TRAINER_JOBS.values())
    keys = {key for config in configs for key, _ in leaves(config)}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    named = set()
    if document.name != "CHANGELOG.md":  # It names old keys, too.
        for code in code_of(document):
            named |= set(re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_]+)+)(?=[=\s]|$)", code))
    named = {key for key in named if key.partition(".")[0] in sections}
    wrong = {key for key in named - keys if not key.endswith((".py", ".yaml", ".txt"))}
    assert not {key for key in wrong if not any(known.startswith(f"{key}.") for known in keys)}


def inventory() -> set[str]:
    """Return the modules that docs/architecture.md lists, as paths."""
    listed, folder = set(), ""
    for line in text_of(ARCHITECTURE).splitlines():
        if found := re.match(r" {4}([a-z_]+(?:/[a-z_]+)*/)  +\S", line):
            folder = found[1]
        elif found := re.match(r" {8}(\w+\.py)  +\S", line):
            listed.add(folder + found[1])
    return listed


def test_every_module_is_in_the_inventory() -> None:
    modules = {
        name(path)
        for package in ("transforms", "pipelines", "trainer")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and "tiny_sd" not in path.parts
    }
    assert inventory() == modules


def definitions(path: Path) -> set[str]:
    """Return the functions and classes of a module, and `Class.method`."""
    found = set()
    for node in ast.parse(text_of(path)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return found


def test_the_walk_of_a_caption_names_functions_where_they_are() -> None:
    rows = re.findall(r"\| `([\w.]+)` \| `([\w/]+\.py)` \|$", text_of(ARCHITECTURE), re.MULTILINE)
    assert 15 <= len(rows) <= 25, "it fits on a screen"
    for function, file in rows:
        assert function in definitions(ROOT / file), f"{file} has no {function}"


def test_the_readme_fits_on_two_screens() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= 130
