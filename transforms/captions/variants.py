"""Caption variants that the paper compares (Table 2), and captions from a file.

- `full`: all templates and all kinds of concepts;
- `IN+OurBG+LLM`: objects with their own backgrounds, written by the language model;
- `IN+Places+LLM`: the same with random places instead of those backgrounds;
- `IN+h+Places`: no language model; class, hypernym and a random place are joined in the form of
  Sariyildiz et al. (2023), "c, h inside b";
- `file`: captions from a file.

The names are the paper's. IN is the source `imagenet-1k` of the run's concept list; in a list
without it, all objects count as IN. Places are those of the list, so ImageNet and Places-365 give
the paper's variants. In the last two variants, the text of a prompt is already the caption:
everything after that, filters included, is the same for all variants.
"""

import dataclasses
import hashlib
import io
import random
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from transforms.captions.prompts import ConceptSampler
from transforms.core import storage
from transforms.core.errors import ConfigError, MissingFileError
from transforms.core.records import Concept, Prompt
from transforms.core.seeding import derive

Variant = Literal["full", "IN+h+Places", "IN+Places+LLM", "IN+OurBG+LLM", "file"]

IMAGENET = "imagenet-1k"
"""Source of the classes that IN stands for."""

WITHOUT_MODEL: frozenset[Variant] = frozenset({"IN+h+Places", "file"})

_TEXT_COLUMNS = ("text", "caption")


def variant_concepts(variant: Variant, concepts: tuple[Concept, ...]) -> tuple[Concept, ...]:
    """Return the concepts of a variant, each with the backgrounds that the variant uses.

    Raises:
        ConfigError: The list has no concepts of a kind that the variant needs.
    """
    if variant == "full":
        return concepts
    objects = tuple(concept for concept in concepts if concept.kind == "object")
    classes = tuple(concept for concept in objects if concept.source == IMAGENET)
    objects = classes or objects
    places = tuple(concept.name for concept in concepts if concept.kind == "place")
    if variant != "IN+OurBG+LLM":
        _expect(variant, "place", bool(places))
        objects = tuple(dataclasses.replace(concept, backgrounds=places) for concept in objects)
    if variant == "IN+h+Places":
        _expect(variant, "hypernym", any(concept.hypernym for concept in objects))
    _expect(variant, "object with backgrounds", any(concept.backgrounds for concept in objects))
    return objects


def _expect(variant: Variant, what: str, is_there: bool) -> None:
    if not is_there:
        raise ConfigError(
            f"key 'captions.variant' has value {variant!r}: expected a concept list with at least "
            f"one {what}"
        )


class WordPrompts:
    """Captions that are joined from words: "fox, canine inside forest".

    Args:
        concepts: Concepts from `variant_concepts`.
        seed: Seed of the run.
    """

    def __init__(self, concepts: tuple[Concept, ...], seed: int) -> None:
        self._concepts = ConceptSampler(concepts)
        self._seed = seed

    def build(self, ordinal: int) -> Prompt:
        """Return the caption of an ordinal, the same in every process."""
        draw = random.Random(derive(self._seed, "words", ordinal)).random
        concept = self._concepts.at(draw())
        place = concept.backgrounds[int(draw() * len(concept.backgrounds))]
        text = f"{_with_hypernym(concept)} inside {place}"
        return Prompt(ordinal, concept, "c-background", place, None, text, 0)

    def digests(self) -> dict[str, str]:
        """Return the identity of the concept list, for the fingerprint."""
        return {"concepts_hash": self._concepts.digest()}

    def plan(self) -> dict[tuple[str, str, str], float]:
        """Return the expected share of each (source, concept, template)."""
        return {(c.source, c.name, "c-background"): share for c, share in self._concepts.shares()}

    def most_captions(self) -> int:
        """Return the number of pairs of a concept and a place."""
        places = {_with_hypernym(c): len(set(c.backgrounds)) for c, _ in self._concepts.shares()}
        return sum(places.values())


def _with_hypernym(concept: Concept) -> str:
    return f"{concept.name}, {concept.hypernym}" if concept.hypernym else concept.name


@dataclasses.dataclass(frozen=True)
class FilePrompts:
    """Captions of a file, in its order, again and again. It pickles: workers read the file.

    Attributes:
        path: Text with one caption per line (empty lines do not count), or `.csv` or `.parquet`
            with a column `text` or `caption` and, optionally, a column `concept`. Each worker holds
            the file in memory.
        sha256: Checksum of the file.
    """

    path: str
    sha256: str

    @classmethod
    def open(cls, path: str) -> "FilePrompts":
        """Open a file of captions.

        Raises:
            ConfigError: The file does not exist.
        """
        try:
            return cls(path, hashlib.sha256(storage.read_bytes(path)).hexdigest())
        except MissingFileError as error:
            raise ConfigError(
                f"key 'captions.captions_file' has value {path!r}: no such file"
            ) from error

    def __len__(self) -> int:
        return len(_rows(self.path, self.sha256))

    def build(self, ordinal: int) -> Prompt:
        """Return the caption of an ordinal: a row of the file; after the last comes the first."""
        rows = _rows(self.path, self.sha256)
        row = rows.slice(ordinal % len(rows), 1).to_pylist()[0]
        source = PurePosixPath(self.path).stem
        concept = Concept(row["concept"] or "", source, "object", 1.0, ())
        # On one line, since all lines of a prompt before the last one count as examples.
        text = " ".join((row["text"] or "").split())
        return Prompt(ordinal, concept, "c", None, None, text, 0)

    def digests(self) -> dict[str, str]:
        """Return the identity of the file, for the fingerprint."""
        return {"captions_file_sha256": self.sha256}

    def plan(self) -> dict[tuple[str, str, str], float]:
        """Return nothing: it is unknown what the captions are about."""
        return {}

    def most_captions(self) -> int:
        """Return the number of rows."""
        return len(self)


@lru_cache(maxsize=1)
def _rows(path: str, sha256: str) -> pa.Table:
    """Return the columns `text` and `concept` of a file of captions."""
    content = storage.read_bytes(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ConfigError(f"file of captions {path!r} changed while it was read")
    suffix = PurePosixPath(path).suffix.lower()
    try:
        if suffix == ".parquet":
            table = pq.read_table(io.BytesIO(content))
        elif suffix == ".csv":
            quoted = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(io.BytesIO(content), parse_options=quoted)
        else:
            lines = [line for line in content.decode("utf-8").splitlines() if line.strip()]
            table = pa.table({"text": lines})
    # A damaged page of a Parquet file is a plain OSError.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"file of captions {path!r} cannot be read: {error}") from error
    texts = [name for name in _TEXT_COLUMNS if name in table.column_names]
    if not texts:
        raise ConfigError(
            f"file of captions {path!r} has columns {', '.join(table.column_names)}: expected one "
            "of them to be 'text' or 'caption'"
        )
    has_concepts = "concept" in table.column_names
    concepts = (
        _strings(path, table, "concept") if has_concepts else pa.nulls(len(table), pa.string())
    )
    return pa.table([_strings(path, table, texts[0]), concepts], names=["text", "concept"])


def _strings(path: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    try:
        return table[name].cast(pa.string())
    except pa.ArrowException as error:
        raise ConfigError(
            f"file of captions {path!r}: column {name!r} holds {table[name].type}: expected text"
        ) from error
