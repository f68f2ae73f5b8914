"""The drawings tiny-sd learns from: fetched with npm, rasterised, one cut-out per concept and set.

Seven openly licensed icon sets draw the same things under the same names, so a concept comes with
five to seven drawings in as many styles. Two further sets of that family, `openmoji` and
`emojione-v1`, are left out on purpose: the demo tests encoders on them.
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
    """Something tiny-sd can paint: its name, its group and the icon that shows it."""

    wave: str  # "first" or "second": when its training begins
    name: str
    group: str
    icon: str


@dataclass(frozen=True)
class Drawing:
    """One set's drawing of a concept, cut to its bounding box."""

    concept: str
    vendor: str
    rgba: NDArray[np.uint8]  # [H, W, 4], straight alpha, longer side close to RASTER


def load_concepts() -> list[Concept]:
    """Read the list of concepts that stands beside this module: the first wave, then the second."""
    waves = yaml.safe_load(Path(__file__).with_name("concepts.yaml").read_text())
    return [
        Concept(wave, name, group, icon)
        for wave, groups in waves.items()
        for group, members in groups.items()
        for name, icon in members.items()
    ]


def fetch(folder: Path) -> None:
    """Install the pinned icon sets into `folder` with the npm client; does nothing when present."""
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
            "Fetching the drawings needs the npm client, which is not installed."
        ) from error
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"npm could not install {sorted(wanted)}: {error.stderr.strip()}"
        ) from error


def load_drawings(folder: Path, concepts: list[Concept]) -> list[Drawing]:
    """Rasterise every set's drawing of every concept.

    Args:
        folder: where `fetch` installed the icon sets.
        concepts: what to draw.

    Returns:
        Drawings ordered by concept, then by set; a set that lacks the icon is left out.
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
    """Build the SVG of icon `name` from a set in Iconify's JSON format; None if it is not there."""
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
    """Rasterise an SVG and cut it to its visible bounding box: [H, W, 4]."""
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
