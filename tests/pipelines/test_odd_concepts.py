"""Concept names of many scripts and shapes in the whole captions stage, with the real vLLM."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.captions import CaptionsConfig, prompt_source
from tests.support.paths import PIPELINE_CONFIGS
from transforms.core.config import load_config
from transforms.core.stages import stage_folder

DEMO = str(PIPELINE_CONFIGS / "demo.yaml")

WORDS = """
apple armchair backpack balloon banana barn bear bicycle book bowl bridge bus butterfly cactus
candle castle cat chicken clock cow deer dog dolphin drum eagle elephant fence flag forest fox
frog guitar hammer horse kangaroo kettle lamp lemon mushroom penguin
"""
ORDINARY = WORDS.split()
ODD = [
    *("jack-o'-lantern", "shepherd's pie", "bird’s nest", "Queen Anne's lace", "'quoted' mug"),
    *('"bubble" tea', "“Starry Night” poster", "`code` on a screen", "«guillemets»", '12" record'),
    *("crane (machine)", "crane (bird)", "bass (fish)", "(hedge) maze", "jug [clay]", "{name} tag"),
    *("T-shirt", "merry-go-round", "forget-me-not", "jack-in-the-box", "x–ray", "-40 thermometer"),
    *("café", "crème brûlée", "piñata", "jalapeño", "smörgåsbord", "Dvořák bust", "naïve painting"),
    *("猫", "富士山", "寿司", "茶壶", "만두", "ねこ", "カメラ", "самовар", "κέρμα"),
    *("हाथी", "ช้าง", "قطة", "N° 5"),
    *("🦊", "🍎", "👩‍🚀", "🇯🇵", "cup of ☕", "X", "a", "é", "木", "?", "7"),
    *(
        "1984",
        "Boeing 737-300",
        "Audi TT RS Coupe 2012 car",
        "salt & pepper",
        "50% sign",
        "C:\\disk",
    ),
    *("tench, Tinca tinca", "either/or sign", "A => B", "#hashtag", "user@example", "$5 note", "*"),
    *("</s> sign", "‹angle›", "UPPER CASE", "camelCase", "e.g. a lamp", "lamp."),
    "a very old wooden rocking horse with a red saddle, a long mane and one missing eye",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "supercalifragilisticexpialidocious" * 2 + " umbrella",
    "木" * 80,
    "🦊" * 20,
]
NAMES = [*ORDINARY, *(name[:80] for name in ODD)]
NUM_CAPTIONS = 140


def names(caption: str, name: str) -> bool:
    """Return whether a caption contains the name or its plural; not the rule of the filters."""
    return (name[:-1] if len(name) > 4 else name) in caption.casefold()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.xdist_group("models")
def test_concepts_of_any_script(tmp_path: Path) -> None:
    entries = [{"name": name, "backgrounds": ["a street in Kraków"]} for name in NAMES]
    concepts = tmp_path / "concepts.yaml"
    source = {"source": "any", "concepts": entries}
    concepts.write_text(yaml.safe_dump({"sources": [source]}, allow_unicode=True))
    settings = [f"run={tmp_path}/run", f"concepts={concepts}", "captions_per_shard=70"]
    settings += [f"num_captions={NUM_CAPTIONS}", "captions.oversampling=1"]
    command = [sys.executable, "-m", "pipelines", "captions", DEMO, *settings]
    subprocess.run(command, check=True, capture_output=True)

    prompts = prompt_source(load_config(CaptionsConfig, DEMO, settings))
    asked = [prompts.build(ordinal).concept.name for ordinal in range(NUM_CAPTIONS)]
    shards = Path(stage_folder(f"{tmp_path}/run", "captions-raw").url) / "shards"
    rows = [row for path in shards.glob("*/*") for row in pq.read_table(path).to_pylist()]
    assert all(row["concept"] == asked[row["ordinal"]] for row in rows)
    ordinary = sum(name in ORDINARY for name in asked)
    named = sum(names(r["text"], r["concept"]) for r in rows if r["concept"] in ORDINARY)
    assert named >= 0.9 * ordinary, f"{named} captions name their concept, {ordinary} were asked"
    assert len({row["concept"] for row in rows} - set(ORDINARY)) > 20
