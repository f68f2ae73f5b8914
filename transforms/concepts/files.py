"""File formats of tables of concepts: text, CSV and Parquet, read row by row.

- Text: one name per line; empty lines and lines that start with `#` are ignored.
- CSV and Parquet: a column `name` and, if needed, `weight`, `kind`, `backgrounds`, `hypernym` and
  `source`. Empty cells are ignored. In CSV, places in `backgrounds` are separated by `;`, and a
  single place that contains a comma ends with `;`.

`python -m pipelines concepts` writes such a table as Parquet. `lists` makes concepts of the rows.
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
    """A concept in a list: its name, and settings that differ from those of its source."""

    name: str
    """Name of the concept, as a person would write it in a caption."""
    weight: PositiveFloat = 1.0
    """Share of the source's captions, relative to the other concepts of the source."""
    kind: Kind | None = None
    """Kind of the concept; default: the kind of its source."""
    backgrounds: str | tuple[str, ...] | None = None
    """Places of the concept; default: the backgrounds of its source."""
    hypernym: str | None = None
    """A more general term: a fox is a canine."""


@dataclass(frozen=True)
class ConceptRow:
    """A concept in a list, with its position there."""

    where: str
    """File and line or row, for error messages."""
    entry: ConceptEntry
    source: str | None = None
    """Value of the column `source`, if the table has one."""
    synset: str | None = None
    """WordNet id of an ImageNet class."""


def read_rows(path: str) -> list[ConceptRow]:
    """Read the rows of a text, CSV or Parquet file, in its order.

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
    """Read the places of a text file with one place per line, without repetitions.

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
            filled: dict[str, Any] = {name: cell for name, cell in cells.items() if cell}
            if "backgrounds" in filled:
                filled["backgrounds"] = _split_places(where, filled["backgrounds"])
            yield where, {"name": "", **filled}


def _check_header(where: str, columns: Sequence[str]) -> None:
    known = (*ConceptEntry.model_fields, "source")
    for column in columns:
        # Spreadsheets write empty columns after the last one; only a cell in them is an error.
        if column and column not in known:
            close = difflib.get_close_matches(column.strip().lower(), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(known)}"
            raise ConfigError(f"{where}: unknown column {column!r}: {hint}")
    if "name" not in columns:
        raise ConfigError(f"{where}: column 'name' is missing: the first line names the columns")


def _split_places(where: str, cell: str) -> list[str]:
    """Split a CSV cell into places; a `;` at its end marks a single place with a comma."""
    if _SEPARATOR not in cell and ("," in cell or "|" in cell):
        raise ConfigError(
            f"{where}: column 'backgrounds' has value {cell!r}: places are separated by "
            f"{_SEPARATOR!r}; if this is a single place, add {_SEPARATOR!r} at its end"
        )
    places = cell.rstrip().removesuffix(_SEPARATOR).split(_SEPARATOR)
    return [place.strip() for place in places]


def _parquet_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, cells in enumerate(pq.read_table(path).to_pylist(), 1):
        filled = {name: cell for name, cell in cells.items() if cell not in (None, "")}
        yield f"{path}, row {number}", {"name": "", **filled}


def _row(where: str, cells: dict[str, Any]) -> ConceptRow:
    source = cells.pop("source", None)
    if source is not None and not isinstance(source, str):
        raise ConfigError(f"{where}: column 'source' has value {source!r}: expected a name")
    try:
        return ConceptRow(where, ConceptEntry.model_validate(cells), source)
    except ValidationError as error:
        detail = error.errors()[0]
        column = detail["loc"][0]
        expected = ", ".join((*ConceptEntry.model_fields, "source"))
        reason = detail["msg"] if column in ConceptEntry.model_fields else f"expected {expected}"
        raise ConfigError(
            f"{where}: column {column!r} has value {detail['input']!r}: {reason}"
        ) from error
