"""Build the two test sets in `trainer/evaluate/data/` from packages on public registries.

`drawings`: the things in `data/things.yaml` as drawn by OpenMoji and Streamline, each on a plain
colour. The built-in image model is trained on drawings by other makers (`pipelines/tiny_sd`).
`fashion-mnist`: photographs of clothing, a part of Fashion-MNIST. The result depends only on the
pinned packages and on this file, so `make testset` reproduces the same pictures.

    python -m trainer.evaluate.make_testset [--downloads FOLDER] [--out FOLDER]
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image

from trainer.evaluate.datasets.builtin import DATA_FOLDER, PICTURE_SCHEMA, LabelledPicture
from trainer.evaluate.datasets.installed import FASHION_CLASSES, read_idx
from transforms.core.records import to_table
from transforms.core.seeding import derive


@dataclass(frozen=True)
class IconSet:
    """Icons in one npm package, `@iconify-json/<prefix>`."""

    prefix: str
    version: str
    sha256: str  # of the package's archive
    on_disc: bool = False  # the first path of an icon is a disc behind the drawing; left out


@dataclass(frozen=True)
class Vendor:
    """A maker of drawings; the first of its icon sets that has a thing draws it."""

    name: str
    licence: str  # SPDX identifier
    icon_sets: tuple[IconSet, ...]


VENDORS = (
    Vendor(
        "OpenMoji",
        "CC-BY-SA-4.0",
        (
            IconSet(
                "openmoji",
                "1.2.29",
                "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
            ),
        ),
    ),
    Vendor(
        "Streamline",
        "CC-BY-4.0",
        (
            IconSet(
                "streamline-emojis",
                "1.2.4",
                "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
            ),
            IconSet(
                "streamline-kameleon-color",
                "1.2.2",
                "5f972d986afb340d8a45d7a16e767f99f91fdd94db53e46a78c79847212aed7b",
                on_disc=True,
            ),
        ),
    ),
)
"""Makers of the drawings; none of them drew what the built-in image model is trained on."""
FASHION_PACKAGE = "dataset-fashion-mnist=0.0~git20200523.55506a9-1"
"""Debian package and version."""
FASHION_SPLITS = (("train", "train", 64), ("val", "train", 16), ("test", "t10k", 80))
"""(our split, original file that it is taken from, pictures per class)."""

SIDE = 64
"""Width and height of a drawing's picture in pixels."""
LONGER_SIDE = 52
"""Longer side of the drawing itself, in pixels."""
OVERSAMPLING = 4
"""Drawings are rasterised larger by this factor and then scaled down."""
NUM_COLOURS = 64
"""Colours of a stored drawing; takes a third of the bytes without a visible difference."""
SPLIT_ORDER = ("train", "test", "val", "test", "train", "test", "val", "test", "train", "test")
"""Splits of the things of a category, in turn: 30 % train, 20 % val, 50 % test.

The final fit of every protocol uses train and val, so a large val costs nothing and makes the
choice of settings more reliable.
"""
BACKGROUNDS = (
    (255, 255, 255),
    (236, 232, 220),
    (188, 214, 235),
    (191, 222, 184),
    (243, 222, 158),
    (238, 196, 202),
    (205, 192, 226),
    (196, 196, 196),
)
"""Background colours; chosen by the name of a picture, independently of its category."""


def main(arguments: Sequence[str]) -> None:
    """Fetch missing packages and write both Parquet files."""
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate.make_testset")
    parser.add_argument("--downloads", type=Path, default=Path(".cache/testset"))
    parser.add_argument("--out", type=Path, default=DATA_FOLDER)
    options = parser.parse_args(arguments)
    options.downloads.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, pictures in (
        ("drawings", drawings(options.downloads)),
        ("fashion-mnist", fashion_mnist(options.downloads)),
    ):
        rows = list(pictures)
        path = options.out / f"{name}.parquet"
        pq.write_table(to_table(rows, PICTURE_SCHEMA), path, compression="zstd")
        print(f"{path}: {len(rows)} pictures, {path.stat().st_size:,} bytes")


def drawings(downloads: Path) -> Iterator[LabelledPicture]:
    """Yield every vendor's drawing of every listed thing, in the order of the list."""
    names = yaml.safe_load((DATA_FOLDER / "streamline.yaml").read_text())
    packages = {
        icon_set.prefix: fetch_icons(icon_set, downloads)
        for vendor in VENDORS
        for icon_set in vendor.icon_sets
    }
    categories = yaml.safe_load((DATA_FOLDER / "things.yaml").read_text())
    for category, things in categories.items():
        drawn = {thing: find_drawings(thing, packages, names) for thing in things}
        splits = split_things(category, {thing: len(found) for thing, found in drawn.items()})
        for thing, found in drawn.items():
            for vendor, prefix, svg in found:
                yield LabelledPicture(
                    image=paint(svg, background(thing, prefix)),
                    label=category,
                    name=thing,
                    vendor=vendor.name,
                    split=splits[thing],
                    licence=vendor.licence,
                )


def find_drawings(
    thing: str, packages: dict[str, dict[str, Any]], names: dict[str, dict[str, str]]
) -> list[tuple[Vendor, str, str]]:
    """Return (vendor, icon set, SVG) of each vendor that draws a thing.

    Args:
        thing: Name of the thing.
        packages: Icon set -> its content in Iconify's JSON format.
        names: Icon set -> thing -> name of its icon, where that is not the name of the thing.
    """
    found = []
    for vendor in VENDORS:
        for icon_set in vendor.icon_sets:
            name = names.get(icon_set.prefix, {}).get(thing, thing)
            svg = icon_svg(packages[icon_set.prefix], name)
            if svg is not None:
                if icon_set.on_disc:
                    svg = re.sub(r"<path [^>]*/>", "", svg, count=1)
                found.append((vendor, icon_set.prefix, svg))
                break
    return found


def split_things(category: str, num_drawings: dict[str, int]) -> dict[str, str]:
    """Return the split of each thing, so that all drawings of a thing are in one split.

    Things with two drawings and things with one are split separately, in an order that depends only
    on their names.

    Args:
        category: Name of the category.
        num_drawings: Thing -> number of vendors that drew it.
    """
    splits = {}
    for wanted in sorted(set(num_drawings.values())):
        things = [thing for thing, count in num_drawings.items() if count == wanted]
        things.sort(key=lambda thing: derive("testset", category, thing))
        for position, thing in enumerate(things):
            splits[thing] = SPLIT_ORDER[position % len(SPLIT_ORDER)]
    return splits


def background(thing: str, prefix: str) -> tuple[int, int, int]:
    """Return the RGB colour behind one vendor's drawing of a thing."""
    return BACKGROUNDS[derive("background", thing, prefix) % len(BACKGROUNDS)]


def paint(svg: str, colour: tuple[int, int, int]) -> bytes:
    """Rasterise a drawing in the middle of a plain square; return a PNG of SIDE x SIDE pixels."""
    import resvg_py

    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    visible = drawn.getchannel("A").point([255 if alpha > 16 else 0 for alpha in range(256)])
    drawn = drawn.crop(visible.getbbox())
    scale = LONGER_SIDE / max(drawn.size)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    drawn = drawn.resize(size, Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (SIDE, SIDE), colour)
    picture.paste(drawn, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2), drawn)
    return _png(picture.quantize(NUM_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))


def icon_svg(icons: dict[str, Any], name: str) -> str | None:
    """Return the SVG of an icon in Iconify's JSON format; None if the set does not have it."""
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
    side = SIDE * OVERSAMPLING
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{side}" height="{side}">'
        f"{icon['body']}</svg>"
    )


def fetch_icons(icon_set: IconSet, downloads: Path) -> dict[str, Any]:
    """Return the JSON of a pinned icon set; its archive is fetched with npm unless it is there.

    Raises:
        ValueError: The archive is not the one that the test set was built from.
    """
    archive = downloads / f"iconify-json-{icon_set.prefix}-{icon_set.version}.tgz"
    if not archive.exists():
        package = f"@iconify-json/{icon_set.prefix}@{icon_set.version}"
        _run(["npm", "pack", "--silent", package], downloads)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != icon_set.sha256:
        raise ValueError(f"{archive} has another SHA-256 than the pinned {icon_set.sha256}")
    with tarfile.open(archive) as package_files:
        member = package_files.extractfile("package/icons.json")
        assert member is not None, "every icon set has icons.json"
        icons: dict[str, Any] = json.load(member)
        return icons


def fashion_mnist(downloads: Path) -> Iterator[LabelledPicture]:
    """Yield the first pictures of each class in the original files, which are shuffled."""
    folder = fetch_fashion(downloads)
    taken = {"train": 0, "t10k": 0}
    for split, source, count in FASHION_SPLITS:
        images = read_idx(folder / f"{source}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{source}-labels-idx1-ubyte.gz")
        for label, name in enumerate(FASHION_CLASSES):
            first = taken[source]
            for index in np.flatnonzero(labels == label)[first : first + count]:
                yield LabelledPicture(
                    image=_png(Image.fromarray(images[index])),
                    label=name,
                    name=f"{source}-{index:05d}",
                    vendor="Zalando",
                    split=split,
                    licence="MIT",
                )
        taken[source] += count


def fetch_fashion(downloads: Path) -> Path:
    """Return the folder with the four files of Fashion-MNIST, unpacked from a Debian package."""
    unpacked = downloads / "fashion-mnist"
    if not unpacked.exists():
        _run(["apt-get", "download", FASHION_PACKAGE], downloads)
        (archive,) = downloads.glob("dataset-fashion-mnist_*.deb")
        _run(["dpkg-deb", "-x", archive.name, unpacked.name], downloads)
    return unpacked / "usr/share/datasets/fashion-mnist"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ValueError(f"building the test sets needs {command[0]!r}: install it") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"{' '.join(command)!r} failed: {reason[0]}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
