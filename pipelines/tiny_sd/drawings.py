"""Drawings for the training of tiny-sd: fetched with npm and rasterised, one per concept and set.

Seven openly licensed icon sets draw the same things under the same names, so a concept has five to
seven drawings in as many styles. Sets by OpenMoji and Streamline are left out on purpose: the demo
tests encoders on drawings by these makers (`trainer/evaluate/data`).
"""

import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

PACKAGES = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "emojione": "1.2.3",
    "fxemoji": "1.2.2",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
}
"""Icon sets (npm packages under `@iconify-json/`) and their pinned versions."""

RASTER = 128
"""Side, in pixels, at which a drawing is rasterised before it is cut out."""


@dataclass(frozen=True)
class Concept:
    """A concept that tiny-sd can paint: its name, its group and the name of its icon."""

    wave: str  # "first" or "second": when training on it begins
    name: str
    group: str
    icon: str


@dataclass(frozen=True)
class Drawing:
    """A drawing of a concept from one icon set, cut to its bounding box."""

    concept: str
    vendor: str
    rgba: NDArray[np.uint8]  # [H, W, 4], straight alpha, longer side close to RASTER


def load_concepts() -> list[Concept]:
    """Read the concepts from `concepts.yaml`: the first wave, then the second."""
    waves = yaml.safe_load(Path(__file__).with_name("concepts.yaml").read_text())
    return [
        Concept(wave, name, group, icon)
        for wave, groups in waves.items()
        for group, members in groups.items()
        for name, icon in members.items()
    ]


def fetch(folder: Path) -> None:
    """Install the pinned icon sets that are missing in `folder` with the npm client."""
    wanted = {
        f"@iconify-json/{name}": version
        for name, version in PACKAGES.items()
        if _installed_version(folder, name) != version
    }
    if not wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit"]
    command += ["--no-fund", "--no-save", *(f"{k}@{v}" for k, v in wanted.items())]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ValueError(
            "The step `fetch` needs the npm client, which is not installed."
        ) from error
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"npm could not install {sorted(wanted)}: {error.stderr.strip()}"
        ) from error


def load_drawings(folder: Path, concepts: list[Concept]) -> list[Drawing]:
    """Rasterise the drawings of all concepts from all icon sets.

    Args:
        folder: Folder that `fetch` installed the icon sets into.
        concepts: Concepts to draw.

    Returns:
        Drawings ordered by concept, then by set, without those that a set does not have.
    """
    sets = {
        name: json.loads((_package(folder, name) / "icons.json").read_text()) for name in PACKAGES
    }
    drawings = []
    for concept in concepts:
        for vendor, icons in sets.items():
            svg = icon_svg(icons, concept.icon)
            if svg is not None:
                drawings.append(Drawing(concept.name, vendor, rasterise(svg)))
    return drawings


def icon_svg(icons: dict[str, Any], name: str) -> str | None:
    """Return the SVG of an icon of a set in Iconify's JSON format; None if it does not exist."""
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    box = [
        icon.get(k, icons.get(k, d))
        for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}" width="{RASTER}" height="{RASTER}">'
        f"{icon['body']}</svg>"
    )


def rasterise(svg: str) -> NDArray[np.uint8]:
    """Rasterise an SVG and cut it to its visible bounding box: uint8 [H, W, 4]."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a > 16 else 0).getbbox()
    return np.asarray(image.crop(box))


def _package(folder: Path, name: str) -> Path:
    return folder / "node_modules" / "@iconify-json" / name


def _installed_version(folder: Path, name: str) -> str | None:
    manifest = _package(folder, name) / "package.json"
    return json.loads(manifest.read_text())["version"] if manifest.exists() else None
