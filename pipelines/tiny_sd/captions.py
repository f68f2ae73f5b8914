"""Training captions: sentences with a concept, sometimes a background, and many other words.

The captions of a run are free prose of a language model. So most of a training caption is noise on
purpose: the picture depends only on the concept (the first thing named) and the background phrase.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipelines.tiny_sd.scenes import BACKGROUNDS, COLOURS

UNNAMED = len(BACKGROUNDS)
"""Background index of a caption that names no background."""

EMPTY_SHARE = 0.1
"""Share of captions that are empty, for classifier-free guidance."""

Generator = np.random.Generator


@dataclass(frozen=True)
class Caption:
    """A caption, and whether it names the background."""

    text: str
    names_background: bool


@cache
def load_words() -> dict[str, Any]:
    """Read the word lists from `words.yaml`."""
    words: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text())
    return words


@cache
def load_frames() -> dict[str, list[str]]:
    """Read sentences of a language model, by the scene that they name (or `unnamed`)."""
    frames: dict[str, list[str]] = yaml.safe_load(
        Path(__file__).with_name("frames.yaml").read_text()
    )
    return frames


def write_caption(concept: str, background: str, rng: Generator) -> Caption:
    """Write a random caption of a picture, or with probability `EMPTY_SHARE` an empty one."""
    draw = rng.random()
    if draw < EMPTY_SHARE:
        return Caption("", False)
    named = bool(rng.random() < 0.6)
    where = _background_phrase(background, rng) if named else ""
    if draw < 0.35:
        text = _plain(concept, where, rng)
    elif draw < 0.65:
        text = _framed(concept, background, where, rng)
    else:
        text = _sentence(concept, where, rng)
    return Caption(_roughen(text, rng), named)


def _plain(concept: str, where: str, rng: Generator) -> str:
    """Write a bare caption, such as "a cat", "a photo of a cat" or "cat, in the forest"."""
    opening = _pick(load_words()["openings"], rng) if rng.random() < 0.4 else ""
    determiner = "" if rng.random() < 0.15 else ("an" if concept[0] in "aeiou" else "a")
    comma = "," if rng.random() < 0.5 else ""
    name = concept if rng.random() < 0.8 else _name(concept, rng)
    return f"{opening} {determiner} {name}{comma if where else ''} {where}"


def _framed(concept: str, background: str, where: str, rng: Generator) -> str:
    """Put the concept into a sentence that a language model wrote about something else."""
    frames = load_frames()
    if where and background in frames and rng.random() < 0.6:
        return _pick(frames[background], rng).replace("{c}", concept)
    text = _pick(frames["unnamed"], rng).replace("{c}", concept).rstrip(".")
    return f"{text} {where}" if rng.random() < 0.7 else f"{where} {text}"


def _sentence(concept: str, where: str, rng: Generator) -> str:
    """Write a free sentence: opening, adjectives, concept, verb, background, relation, endings."""
    words = load_words()
    parts = [_pick(words["openings"], rng)] if rng.random() < 0.35 else []
    if where and rng.random() < 0.12:
        parts, where = [f"{where},", *parts], ""
    parts += [_pick(words["determiners"], rng), *_adjectives(rng), _name(concept, rng)]
    if rng.random() < 0.7:
        parts.append(_pick(words["verbs"], rng))
    tail = [where] if where else []
    if rng.random() < 0.45:
        other = (
            _pick(words["things"], rng) if rng.random() < 0.75 else _pick(list(words["names"]), rng)
        )
        relation = [_pick(words["relations"], rng), _pick(["a", "the", "its", "some"], rng)]
        tail.append(" ".join([*relation, *_adjectives(rng), other]))
    for _ in range(rng.choice([0, 1, 2], p=[0.4, 0.4, 0.2])):
        tail.append(_fill(_pick(words["endings"], rng), rng))
    if where and rng.random() < 0.5:
        tail = [tail[i] for i in rng.permutation(len(tail))]
    text = " ".join(parts)
    for piece in tail:
        text += (", " if rng.random() < 0.35 else " ") + piece
    if rng.random() < 0.2:
        text += ". " + _fill(_pick(words["sentences"], rng), rng)
    return text


def _roughen(text: str, rng: Generator) -> str:
    """Add stray words at the ends, and vary the case of the first letter and the full stop."""
    words = text.split()
    if rng.random() < 0.35:
        pool = load_words()
        for _ in range(rng.integers(1, 5)):
            stray = _pick(pool["fillers"] if rng.random() < 0.7 else pool["things"], rng)
            # Only before the first or after the last word, so that no name is split.
            words.insert(0 if rng.random() < 0.3 else len(words), stray)
    text = " ".join(words)
    if rng.random() < 0.5:
        text += "."
    return text[:1].upper() + text[1:] if rng.random() < 0.5 else text


def _background_phrase(background: str, rng: Generator) -> str:
    words = load_words()
    if background in COLOURS:
        spelling = "gray" if background == "grey" and rng.random() < 0.3 else background
        phrase: str = _pick(words["colours"], rng).replace("{x}", spelling)
        if spelling[0] in "aeiou":
            phrase = phrase.replace(f"a {spelling}", f"an {spelling}")
        return phrase
    return _pick(words["scenes"][background], rng)


def _name(concept: str, rng: Generator) -> str:
    return concept if rng.random() < 0.7 else _pick(load_words()["names"][concept], rng)


def _adjectives(rng: Generator) -> list[str]:
    count = rng.choice([0, 1, 2], p=[0.45, 0.4, 0.15])
    return [_pick(load_words()["adjectives"], rng) for _ in range(count)]


def _fill(frame: str, rng: Generator) -> str:
    words = load_words()
    while "{a}" in frame:
        frame = frame.replace("{a}", _pick(words["adjectives"], rng), 1)
    while "{t}" in frame:
        frame = frame.replace("{t}", _pick(words["things"], rng), 1)
    return frame


def _pick(options: list[str], rng: Generator) -> str:
    return options[int(rng.integers(len(options)))]
