import re

import numpy as np
import pytest

from pipelines.tiny_sd.captions import EMPTY_SHARE, load_frames, load_words, write_caption
from pipelines.tiny_sd.scenes import BACKGROUNDS, COLOURS, SCENES


@pytest.mark.parametrize("background", ["red", "grey", "forest", "sea"])
def test_captions_name_the_concept_first_and_the_background_if_they_say_so(background: str) -> None:
    rng = np.random.default_rng(1)
    names = ["cat", *load_words()["names"]["cat"]]
    # Sentences of the language model have "snow", the word list has "on the snow".
    hints = [*load_words()["scenes"].get(background, ()), background, "gray"]
    for _ in range(500):
        caption = write_caption("cat", background, rng)
        if caption.text:
            lowered = caption.text.lower()
            assert any(re.search(rf"\b{n}\b", lowered) for n in names), caption.text
            if caption.names_background:
                assert any(h in lowered for h in hints), caption.text


def test_a_share_of_captions_is_empty() -> None:
    rng = np.random.default_rng(2)
    empty = [not write_caption("cat", "red", rng).text for _ in range(4000)]
    assert abs(np.mean(empty) - EMPTY_SHARE) < 0.02


def test_a_seed_fixes_captions() -> None:
    one, two = (
        [write_caption("cat", "sea", rng).text for _ in range(50)]
        for rng in (np.random.default_rng(4), np.random.default_rng(4))
    )
    assert one == two


def test_the_words_fit_the_backgrounds() -> None:
    assert set(load_words()["scenes"]) == set(SCENES)
    assert set(load_frames()) <= {"unnamed", *SCENES}
    assert set(BACKGROUNDS) == set(COLOURS) | set(SCENES)
    every = [w for words in load_words().values() for w in words]
    assert all(isinstance(w, str) for w in every)  # YAML reads a bare `on` as true
