import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.tiny_sd import drawings
from pipelines.tiny_sd.captions import load_words
from trainer.evaluate.make_testset import VENDORS

SQUARE = '<path fill="#f00" d="M4 4h8v8h-8z"/>'


def write_sets(folder: Path, vendors: dict[str, dict[str, object]]) -> None:
    for vendor, icons in vendors.items():
        package = folder / "node_modules" / "@iconify-json" / vendor
        package.mkdir(parents=True)
        (package / "icons.json").write_text(json.dumps(icons))
        version = drawings.PACKAGES[vendor]
        (package / "package.json").write_text(json.dumps({"version": version}))


def test_at_least_150_concepts_in_groups_with_names() -> None:
    concepts = drawings.load_concepts()
    names = [c.name for c in concepts]
    assert len(names) == len(set(names)) >= 150
    assert min(Counter(c.group for c in concepts).values()) >= 3
    assert set(load_words()["names"]) == set(names)
    waves = [c.wave for c in concepts]
    assert waves == sorted(waves, key=["first", "second"].index)


def test_makers_of_test_pictures_are_not_trained_on() -> None:
    makers = {"noto", "twemoji", "emojione", "fxemoji", "fluent"}
    assert {set_.split("-")[0] for set_ in drawings.PACKAGES} == makers
    tested = {icons.prefix.split("-")[0] for vendor in VENDORS for icons in vendor.icon_sets}
    assert tested == {"openmoji", "streamline"}, "both are other makers"


def test_an_icon_is_cut_to_what_is_visible() -> None:
    icons = {"icons": {"box": {"body": SQUARE}}}
    svg = drawings.icon_svg(icons, "box")
    assert svg is not None
    rgba = drawings.rasterise(svg)
    side = drawings.RASTER // 2
    assert rgba.shape == (side, side, 4)
    assert (rgba == np.array([255, 0, 0, 255])).all()


def test_aliases_lead_to_their_icon_and_missing_icons_to_none() -> None:
    icons = {"icons": {"box": {"body": SQUARE}}, "aliases": {"crate": {"parent": "box"}}}
    assert drawings.icon_svg(icons, "crate") == drawings.icon_svg(icons, "box")
    assert drawings.icon_svg(icons, "cat") is None


def test_sets_that_lack_an_icon_are_left_out(tmp_path: Path) -> None:
    full: dict[str, object] = {"icons": {"cat": {"body": SQUARE}}}
    vendors = dict.fromkeys(drawings.PACKAGES, full) | {"noto": {"icons": {}}}
    write_sets(tmp_path, vendors)
    found = drawings.load_drawings(tmp_path, [drawings.Concept("first", "cat", "animal", "cat")])
    assert [d.vendor for d in found] == [v for v in drawings.PACKAGES if v != "noto"]


def test_fetch_asks_npm_for_nothing_when_all_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sets(tmp_path, {vendor: {"icons": {}} for vendor in drawings.PACKAGES})
    commands: list[object] = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: commands.append(command))
    drawings.fetch(tmp_path)
    assert not commands
    (tmp_path / "node_modules/@iconify-json/noto/package.json").unlink()
    drawings.fetch(tmp_path)
    assert len(commands) == 1


def test_fetch_without_npm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="npm client"):
        drawings.fetch(tmp_path)
