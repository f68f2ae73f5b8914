"""Check a concept list, say what it holds, and write it down beside the run.

Reads the `concepts` of the captions stage's config, prints a table of its sources and writes
`<run>/concepts/concepts.parquet` (itself a concept list) and `summary.json`. The captions stage
does not need it: it reads the list itself. Beam's flags have no effect here.
"""

import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from pipelines.captions import CaptionsConfig
from pipelines.runner import say
from transforms.captions.examples import text_digest
from transforms.concepts.lists import ConceptList, read_list
from transforms.core import storage
from transforms.core.errors import ConfigError
from transforms.core.fingerprint import Fingerprint, claim
from transforms.core.records import CONCEPT_SCHEMA, Concept, to_table

CONFIG = CaptionsConfig

_NUM_EXAMPLES = 3
_HEADER = ("source", "kind", "concepts", "left out", "share", "with places", "for instance")


def run(config: CaptionsConfig, flags: Sequence[str]) -> None:
    """Check the list and write it; the same list again changes nothing.

    Raises:
        ConfigError: The list is wrong, or `<run>/concepts` holds another one.
    """
    if not config.concepts:
        raise ConfigError("key 'concepts' is missing: expected the path of a concept list")
    found = read_list(config.concepts)
    folder = storage.join(config.run, "concepts")
    digests = {
        f"source {name}": text_digest(map(repr, concepts))
        for name, concepts in _by_source(found.concepts).items()
    }
    claim(storage.join(folder, "run.yaml"), Fingerprint(digests), {"concepts": config.concepts})
    buffer = io.BytesIO()
    pq.write_table(to_table(found.concepts, CONCEPT_SCHEMA), buffer, compression="zstd")
    written = summary(found)
    storage.update_bytes(buffer.getvalue(), storage.join(folder, "concepts.parquet"))
    storage.update_bytes(
        json.dumps(written, indent=1).encode(), storage.join(folder, "summary.json")
    )
    print(table(written))
    if len(written["sources"]) > 1 and abs(found.total_share - 1) > 1e-9:
        print(
            f"The shares in {config.concepts} add to {found.total_share:g} and were divided by it."
        )
    say(f"{folder}: {len(found.concepts):,} concepts of {len(digests)} sources")


def summary(found: ConceptList) -> dict[str, Any]:
    """What a list holds, as JSON: the content of `summary.json`."""
    left_out = Counter(duplicate.source for duplicate in found.duplicates)
    return {
        "num_concepts": len(found.concepts),
        "total_share": found.total_share,
        "sources": [
            {
                "source": name,
                "kinds": sorted({concept.kind for concept in concepts}),
                "num_concepts": len(concepts),
                "num_left_out": left_out[name],
                "share": sum(concept.weight for concept in concepts),
                "num_with_backgrounds": sum(bool(concept.backgrounds) for concept in concepts),
                "examples": [c.name for c in concepts[:: max(1, len(concepts) // _NUM_EXAMPLES)]][
                    :_NUM_EXAMPLES
                ],
            }
            for name, concepts in _by_source(found.concepts).items()
        ],
        "left_out": [
            {"name": d.name, "source": d.source, "kept_in": d.kept_in} for d in found.duplicates
        ],
    }


def table(written: dict[str, Any]) -> str:
    """A summary for a terminal: one line a source, and what "left out" means if anything was."""
    rows = [
        _HEADER,
        *(
            (
                row["source"],
                ", ".join(row["kinds"]),
                f"{row['num_concepts']:,}",
                f"{row['num_left_out']:,}",
                f"{row['share']:.2%}",
                f"{row['num_with_backgrounds']:,}",
                ", ".join(row["examples"]),
            )
            for row in written["sources"]
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "  ".join(
            cell.rjust(width) if 2 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if written["left_out"]:
        lines.append("left out: named by an earlier source, where it is kept")
    return "\n".join(lines)


def _by_source(concepts: Sequence[Concept]) -> dict[str, list[Concept]]:
    found: dict[str, list[Concept]] = {}
    for concept in concepts:
        found.setdefault(concept.source, []).append(concept)
    return found
