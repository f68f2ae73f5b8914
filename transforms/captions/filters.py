"""Cleaning of completions into captions, and the reasons to drop a caption (each is counted).

The paper and the authors' code have no filters; these rules are ours. They work for any script: a
word is a run of letters, digits and marks, or a single ideograph or kana.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from transforms.core.config import Config, Place, no_fingerprint
from transforms.core.counters import Count
from transforms.core.errors import ConfigError
from transforms.core.records import Prompt

_LIST_MARK = re.compile(r"^(?:[-*•·–—]+|\(?\d{1,2}[.):]|=+>|→)\s+")
_DOUBLE_QUOTES = '"“”«»`'
_QUOTE_PAIRS = {'""', "''", "“”", "‘’", "«»", "``", "”“", '"”', '“"'}
_SENTENCE_END = re.compile(r"[.!?。！？](?=\s|$)")
_SENTENCE_GAP = re.compile(r"(?<=[.!?。！？])\s+")
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿가-힯]|[^\W_぀-ヿ㐀-䶿一-鿿가-힯]+(?:['’][^\W_]+)*")
_MARKUP = re.compile(r"https?://|www\.|</?[a-zA-Z][^>]*>|[{}\\|]|\[[^\]]*\]\(")
_STOP_WORDS = frozenset(
    {"a", "an", "and", "at", "by", "for", "in", "of", "on", "or", "the", "to", "with"}
)
_QUALIFIER = re.compile(r"\(.*?\)")
_MODEL_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_MODEL_NOUN = re.compile(r"(?<=\s)(?:aircraft|airplane|car)$")
"""Words that a list appends to a model of a maker (authors' code: "car" and "aircraft"); captions
may omit them."""
_IRREGULAR = {
    "children": "child",
    "dice": "die",
    "feet": "foot",
    "geese": "goose",
    "lice": "louse",
    "mice": "mouse",
    "oxen": "ox",
    "people": "person",
    "teeth": "tooth",
}
_PLURALS = (
    ("s", ""),
    ("es", ""),
    ("ies", "y"),
    ("ves", "f"),
    ("ves", "fe"),
    ("zzes", "z"),
    ("men", "man"),
    ("i", "us"),
    ("ae", "a"),
    ("ices", "ex"),
    ("ices", "ix"),
)
"""Endings of plurals, with those of the singular."""

_LEAK_WORDS = 8
"""A caption that shares a run of this many words with its prompt is copied from it."""

_REPEATED_WORDS = 4
"""A caption that repeats a run of this many words is a loop."""


class FilterConfig(Config):
    """Which captions are kept."""

    min_words: Annotated[int, Field(ge=1)] = 3
    """Minimum number of words."""
    max_words: Annotated[int, Field(ge=1)] = 60
    """Maximum number of words; CLIP's text encoder reads about 55."""
    min_mention: Annotated[float, Field(ge=0, le=1)] = 0.66
    """Share of the words of a concept's name that its caption must contain; 0 turns this off."""
    min_letters: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Minimum share of letters among the characters that are not spaces."""
    block_list: Place | None = no_fingerprint(None)
    """File of words and phrases that no caption may contain, one per line in the singular; plurals
    are found, too. Empty lines and lines that start with `#` do not count."""


Phrases = Mapping[str, tuple[tuple[str, ...], ...]]
"""Words and phrases, each as a tuple of words, by their first word."""


def load_block_list(path: str | None) -> Phrases:
    """Read the phrases of `FilterConfig.block_list`; None is an empty list.

    Raises:
        ConfigError: The file cannot be read, or a line contains no word.
    """
    if path is None:
        return {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"key 'captions.filters.block_list' has value {path!r}: it cannot be read: {reason}"
        ) from error
    phrases = {
        line: tuple(words_of(line)) for line in lines if line.strip() and not line.startswith("#")
    }
    wordless = [line for line, words in phrases.items() if not words]
    if wordless:
        raise ConfigError(f"block list {path!r}: line {wordless[0]!r} contains no word")
    listed = sorted(set(phrases.values()))
    return {first: tuple(group) for first, group in itertools.groupby(listed, lambda p: p[0])}


def clean(text: str, finished: bool) -> str:
    """Return a completion as a caption: one line without list marks, quotes and cut-off ends.

    Sentences that repeat an earlier one are removed: small models fall into loops.

    Args:
        text: The completion.
        finished: True if the model ended it. Otherwise its last sentence is incomplete, and is
            removed unless it is the only one.
    """
    lines = unicodedata.normalize("NFC", text).strip().splitlines()
    caption = " ".join(lines[0].split()) if lines else ""
    caption = _strip_quotes(_LIST_MARK.sub("", caption))
    if not finished:
        ends = [match.end() for match in _SENTENCE_END.finditer(caption)]
        caption = caption[: ends[-1]] if ends else caption
    caption = _without_repeats(caption)
    # A single sentence loses its full stop, so that captions that differ only by it are equal.
    if caption.endswith(".") and not caption.endswith("..") and ". " not in caption:
        caption = caption[:-1]
    return caption.strip()


def drop_reason(
    caption: str, finished: bool, prompt: Prompt, config: FilterConfig, blocked: Phrases
) -> Count | None:
    """Return why a cleaned caption is dropped, None if it is kept.

    Args:
        caption: The caption, from `clean`.
        finished: True if the model ended the completion; an incomplete sentence is too long.
        prompt: The prompt of the completion.
        config: Limits.
        blocked: Phrases that the caption may not contain.
    """
    words = words_of(caption)
    if not words:
        return Count.DROP_NON_TEXT if caption else Count.DROP_EMPTY
    if _is_non_text(caption, config.min_letters):
        return Count.DROP_NON_TEXT
    if "=>" in caption or _shares_run(words, _prompt_runs(prompt.text)):
        return Count.DROP_PROMPT_LEAKED
    if len(words) < config.min_words:
        return Count.DROP_TOO_SHORT
    if len(words) > config.max_words or not (finished or _SENTENCE_END.search(caption)):
        return Count.DROP_TOO_LONG
    if _is_repetitive(words):
        return Count.DROP_REPEATED
    if blocked and _holds_any(words, blocked):
        return Count.DROP_BLOCKED
    if not mentions(caption, prompt.concept.name, config.min_mention):
        return Count.DROP_CONCEPT_MISSING
    return None


def words_of(text: str) -> list[str]:
    """Return the words of a text, lower-case."""
    return _WORD.findall(text.casefold())


def base_forms(word: str) -> set[str]:
    """Return a word with all words of which it may be the plural or the possessive.

    Wrong guesses are harmless: forms are only compared with each other, never shown.
    """
    word = word.replace("’", "'").removesuffix("'s").rstrip("'")
    forms = {word, _IRREGULAR.get(word, word)}
    for plural, singular in _PLURALS:
        if len(word) > len(plural) + 1 and word.endswith(plural) and not word.endswith("ss"):
            forms.add(word.removesuffix(plural) + singular)
    return forms


def mentions(caption: str, name: str, share: float) -> bool:
    """Return whether a caption contains enough words of a concept's name to be about it.

    Number, case, accents, hyphens, the order of words, articles and text in parentheses do not
    count: "T-shirt" is in "two t shirts", "café" in "a cafe", and "crane (bird)" in "a crane". For
    a model of a maker, year and kind of thing do not count either: "Audi TT 2012 car" is in "a red
    Audi TT".
    """
    said, wanted = _plain(caption), _plain(_essence(name))
    wanted_words = [word for word in words_of(wanted) if word not in _STOP_WORDS]
    if not wanted_words:
        return wanted.strip() in said
    said_words = words_of(said)
    forms = {form for word in said_words for form in base_forms(word)}
    # Compounds may be written as one word or as several.
    pairs = itertools.pairwise(said_words)
    joined = {form for a, b in pairs for form in base_forms(a + b)}
    if base_forms("".join(wanted_words)) & (forms | joined):
        return True
    found = sum(bool(base_forms(word) & forms) for word in wanted_words)
    return found >= share * len(wanted_words)


def _essence(name: str) -> str:
    """Return a concept's name without parts that only distinguish it, unless nothing is left."""
    essence = _QUALIFIER.sub(" ", name).strip()
    if essence[:1].isupper():
        essence = _MODEL_YEAR.sub(" ", _MODEL_NOUN.sub("", essence)).strip()
    return essence or name


def _plain(text: str) -> str:
    """Return a text in lower case and without accents."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _without_repeats(caption: str) -> str:
    seen: set[str] = set()
    kept = []
    for sentence in _SENTENCE_GAP.split(caption):
        key = sentence.casefold().rstrip(".!?。！？")
        # A single word may be an abbreviation.
        if key not in seen or " " not in key:
            kept.append(sentence)
        seen.add(key)
    return " ".join(kept)


def _strip_quotes(text: str) -> str:
    if len(text) > 1 and text[0] + text[-1] in _QUOTE_PAIRS:
        text = text[1:-1]
    # An unpaired double quote at either end; an unpaired single quote may be an apostrophe.
    if sum(c in _DOUBLE_QUOTES for c in text) == 1:
        text = text.strip(_DOUBLE_QUOTES)
    return text.strip()


def _is_non_text(caption: str, min_letters: float) -> bool:
    visible = [c for c in caption if not c.isspace()]
    # In many scripts, marks are parts of letters.
    letters = sum(unicodedata.category(c)[0] in "LM" for c in visible)
    broken = any(c == "\ufffd" or unicodedata.category(c) in ("Cc", "Co") for c in visible)
    return broken or letters < min_letters * len(visible) or bool(_MARKUP.search(caption))


def _runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(length)), strict=False)


@lru_cache(maxsize=1024)
def _example_runs(head: str) -> frozenset[tuple[str, ...]]:
    return frozenset(_runs(words_of(head), _LEAK_WORDS))


def _prompt_runs(text: str) -> frozenset[tuple[str, ...]]:
    """Return the runs of words in the instruction and the examples of a prompt."""
    return _example_runs(text.rpartition("\n")[0])


def _shares_run(words: list[str], runs: frozenset[tuple[str, ...]]) -> bool:
    return any(run in runs for run in _runs(words, _LEAK_WORDS))


def _holds_any(words: list[str], phrases: Phrases) -> bool:
    forms = [base_forms(word) | {word} for word in words]
    return any(
        start + len(phrase) <= len(words)
        and all(wanted in form for wanted, form in zip(phrase, forms[start:], strict=False))
        for start in range(len(words))
        for first in forms[start]
        for phrase in phrases.get(first, ())
    )


def _is_repetitive(words: list[str]) -> bool:
    """Return whether a run of words occurs twice, or one word three times in a row."""
    runs = list(_runs(words, _REPEATED_WORDS))
    stutter = any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False))
    return stutter or len(set(runs)) < len(runs)
