"""How the built-in test sets are built."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.evaluate import make_testset
from trainer.evaluate.datasets.builtin import read_pictures
from trainer.evaluate.datasets.installed import read_idx

SQUARE = '<path fill="#f00" d="M10 10h20v10H10z"/>'


def icon_set() -> dict[str, object]:
    return {
        "icons": {"brick": {"body": SQUARE}, "wide": {"body": SQUARE, "width": 80}},
        "aliases": {"block": {"parent": "brick"}},
        "width": 40,
        "height": 40,
    }


def test_icons_are_found_by_name_and_alias() -> None:
    icons = icon_set()
    assert make_testset.icon_svg(icons, "block") == make_testset.icon_svg(icons, "brick")
    assert 'viewBox="0 0 80 40"' in (make_testset.icon_svg(icons, "wide") or "")
    assert make_testset.icon_svg(icons, "stone") is None


def test_the_first_icon_set_of_a_vendor_that_has_a_thing_draws_it() -> None:
    disc = {"body": '<g><path d="disc"/><path d="M1 1h2v2z"/></g>'}
    empty: dict[str, object] = {"icons": {}}
    packages = {
        icons.prefix: empty for vendor in make_testset.VENDORS for icons in vendor.icon_sets
    }
    packages["streamline-kameleon-color"] = {"icons": {"lamp": disc, "brick": disc}}
    names = {"streamline-kameleon-color": {"desk-lamp": "lamp"}}
    ((vendor, prefix, svg),) = make_testset.find_drawings("desk-lamp", packages, names)
    assert (vendor.name, prefix) == ("Streamline", "streamline-kameleon-color")
    assert "disc" not in svg
    assert "M1 1h2v2z" in svg
    packages |= {"openmoji": icon_set(), "streamline-emojis": icon_set()}
    found = make_testset.find_drawings("brick", packages, names)
    assert [prefix for _, prefix, _ in found] == ["openmoji", "streamline-emojis"]
    assert make_testset.find_drawings("stone", packages, names) == []


def test_an_archive_with_other_bytes_is_refused(tmp_path: Path) -> None:
    icons = make_testset.VENDORS[0].icon_sets[0]
    (tmp_path / f"iconify-json-{icons.prefix}-{icons.version}.tgz").write_bytes(b"another archive")
    with pytest.raises(ValueError, match=r"openmoji.*has another SHA-256"):
        make_testset.fetch_icons(icons, tmp_path)


def test_a_drawing_stands_in_the_middle_of_a_plain_square() -> None:
    svg = make_testset.icon_svg(icon_set(), "brick")
    assert svg is not None
    picture = Image.open(io.BytesIO(make_testset.paint(svg, (10, 200, 30)))).convert("RGB")
    pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (64, 64, 3)
    red = np.abs(pixels - (255, 0, 0)).max(axis=2) < 60
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert (columns[0], columns[-1]) == (6, 57), "the longer side is 52 pixels, in the middle"
    assert (rows[0], rows[-1]) == (19, 44), "the shape is kept"
    corner = pixels[:6, :6].reshape(-1, 3)
    assert np.abs(corner - (10, 200, 30)).max() <= 8


def test_things_are_dealt_out_whole_and_evenly() -> None:
    things = {f"thing-{n}": 1 + n % 2 for n in range(40)}
    splits = make_testset.split_things("animal", things)
    assert splits.keys() == things.keys()
    for drawings in (1, 2):
        found = [splits[thing] for thing, count in things.items() if count == drawings]
        assert [found.count(name) for name in ("train", "val", "test")] == [6, 4, 10]
    turned = make_testset.split_things("animal", dict(reversed(things.items())))
    assert turned == splits, "the order of the list does not matter"


def test_backgrounds_are_independent_of_the_category() -> None:
    rows = read_pictures("drawings")
    colours: dict[str, set[tuple[int, ...]]] = {}
    for row in rows:
        image = Image.open(io.BytesIO(row.image)).convert("RGB")
        colours.setdefault(row.label, set()).add(image.getpixel((0, 0)))  # type: ignore[arg-type]
    assert all(len(found) >= 6 for found in colours.values())


def test_idx_files_are_read(tmp_path: Path) -> None:
    import gzip

    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", *values.shape) + values.tobytes()
    (tmp_path / "images.gz").write_bytes(gzip.compress(content))
    assert (read_idx(tmp_path / "images.gz") == values).all()
