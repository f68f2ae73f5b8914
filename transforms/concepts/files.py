"""Concept lists that are one table: text, CSV and Parquet.

- text: one name per line; empty lines and lines that start with `#` do not count;
- CSV and Parquet: a column `name` and, as needed, `weight`, `kind`, `backgrounds` (in CSV separated
  by `;`; a single place that has a comma ends with one), `hypernym` and `source`. Empty cells are
  as good as none.

What `pipelines concepts` writes is such a table.
"""

import csv
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveFloat, ValidationError

from transforms.core.config import Config
from transforms.core.errors import ConfigError
from transforms.core.records import Kind

_SEPARATOR = ";"


class ConceptEntry(Config):
    """A concept as a list states it: its name, and what differs from its source."""

    name: str
    """What captions are about, as a person would write it."""
    weight: PositiveFloat = 1.0
    """Share of the source's captions relative to the source's other concepts."""
    kind: Kind | None = None
    """Instead of the source's kind."""
    backgrounds: str | tuple[str, ...] | None = None
    """Instead of the source's backgrounds."""
    hypernym: str | None = None
    """What it is a kind of."""


@dataclass(frozen=True)
class Row:
    """A concept with where its list states it, for messages."""

    where: str
    entry: ConceptEntry
    source: str | None = None
    """In a table with a column of that name."""
    synset: str | None = None
    """Of an ImageNet class."""


def read_rows(path: str) -> list[Row]:
    """The concepts of a text, CSV or Parquet file, in its order.

    Raises:
        ConfigError: The file cannot be read, or a row is wrong.
    """
    readers = {".txt": _text_rows, "": _text_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        expected = ", ".join(name for name in readers if name)
        raise ConfigError(f"list {path!r} must be a .yaml, {expected} file, not {suffix!r}")
    try:
        return [_row(where, cells) for where, cells in readers[suffix](path)]
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error
        reason = getattr(error, "strerror", None) or reason
        raise ConfigError(f"list {path!r} cannot be read: {reason}") from error


def read_places(path: str) -> tuple[str, ...]:
    """The places of a text file, one per line, each once.

    Raises:
        ConfigError: The file cannot be read.
    """
    return tuple(dict.fromkeys(row.entry.name for row in read_rows(path)))


def _text_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}, line {number}", {"name": line}


def _csv_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="more cells than columns")
        columns = reader.fieldnames
        if columns is not None:
            _check_header(f"{path}, line {reader.line_num}", columns)
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            kept: dict[str, Any] = {name: cell for name, cell in cells.items() if cell}
            if "backgrounds" in kept:
                kept["backgrounds"] = _places_of_cell(where, kept["backgrounds"])
            yield where, {"name": "", **kept}


def _check_header(where: str, columns: Sequence[str]) -> None:
    known = (*ConceptEntry.model_fields, "source")
    for column in columns:
        # Spreadsheets write commas behind the last column; only a cell below them is an error.
        if column and column not in known:
            close = difflib.get_close_matches(column.strip().lower(), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(known)}"
            raise ConfigError(f"{where}: unknown column {column!r}: {hint}")
    if "name" not in columns:
        raise ConfigError(f"{where}: column 'name' is missing: the first line names the columns")


def _places_of_cell(where: str, cell: str) -> list[str]:
    """The places of a CSV cell; a `;` at its end says that a place with a comma is one."""
    if _SEPARATOR not in cell and ("," in cell or "|" in cell):
        raise ConfigError(
            f"{where}: column 'backgrounds' has value {cell!r}: places are separated by "
            f"{_SEPARATOR!r}; end a single place that is meant like this with {_SEPARATOR!r}"
        )
    places = cell.rstrip().removesuffix(_SEPARATOR).split(_SEPARATOR)
    return [place.strip() for place in places]


def _parquet_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, cells in enumerate(pq.read_table(path).to_pylist(), 1):
        kept = {name: cell for name, cell in cells.items() if cell not in (None, "")}
        yield f"{path}, row {number}", {"name": "", **kept}


def _row(where: str, cells: dict[str, Any]) -> Row:
    source = cells.pop("source", None)
    if source is not None and not isinstance(source, str):
        raise ConfigError(f"{where}: column 'source' has value {source!r}: expected a name")
    try:
        return Row(where, ConceptEntry.model_validate(cells), source)
    except ValidationError as error:
        detail = error.errors()[0]
        column = detail["loc"][0]
        expected = ", ".join((*ConceptEntry.model_fields, "source"))
        reason = detail["msg"] if column in ConceptEntry.model_fields else f"expected {expected}"
        raise ConfigError(
            f"{where}: column {column!r} has value {detail['input']!r}: {reason}"
        ) from error
