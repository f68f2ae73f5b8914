"""Random sentences, and how alike two of them are by definition."""

import random
import re

WORDS = [f"word{i}" for i in range(2000)]


def slow_shingles(text: str, size: int) -> set[tuple[str, ...]]:
    """Return the shingles of a text by their definition: runs of `size` words."""
    spaced = re.sub(r"([\u4e00-\u9fff])", r" \1 ", text.lower())
    words = re.findall(r"[^\W_]+", spaced) or re.sub(" ", "_", text).split() or [""]
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def slow_jaccard(one: str, other: str, size: int) -> float:
    """Return the Jaccard index of two texts' shingles, from 0 to 1."""
    ones, others = slow_shingles(one, size), slow_shingles(other, size)
    return len(ones & others) / len(ones | others)


def altered(text: str, number: int, draw: random.Random) -> str:
    """Return the text with `number` of its words replaced."""
    words = text.split()
    for place in draw.sample(range(len(words)), number):
        words[place] = draw.choice(WORDS)
    return " ".join(words)


def sentences(number: int, draw: random.Random, length: int = 20) -> list[str]:
    """Return so many random sentences of `length` words."""
    return [" ".join(draw.choices(WORDS, k=length)) for _ in range(number)]
