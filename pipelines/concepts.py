"""Check a concept list, show its sources, and write it to the run.

Reads `concepts` from the config of the captions stage, prints a table of the list's sources and
writes `<run>/concepts/concepts.parquet` (also a valid concept list) and `summary.json`. The
captions stage does not need them: it reads the list itself. Beam's flags have no effect here.
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
from transforms.core.references import redacted

CONFIG = CaptionsConfig

_NUM_EXAMPLES = 3


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
    written = {"concepts": config.written()["concepts"]}
    claim(storage.join(folder, "run.yaml"), Fingerprint(digests), written)
    buffer = io.BytesIO()
    pq.write_table(to_table(found.concepts, CONCEPT_SCHEMA), buffer, compression="zstd")
    content = summary(found)
    storage.update_bytes(buffer.getvalue(), storage.join(folder, "concepts.parquet"))
    storage.update_bytes(
        json.dumps(content, indent=1).encode(), storage.join(folder, "summary.json")
    )
    print(table(content))
    if len(content["sources"]) > 1 and abs(found.total_share - 1) > 1e-9:
        sentence = f"The shares in {config.concepts} add up to {found.total_share:g}"
        print(f"{redacted(sentence)} and were divided by that sum.")
    say(f"{folder}: {len(found.concepts):,} concepts of {len(digests)} sources")


def summary(found: ConceptList) -> dict[str, Any]:
    """Return what a list holds, as JSON: the content of `summary.json`."""
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
    """Return a summary for a terminal: one line per source, and a note on concepts left out."""
    from tabulate import tabulate

    columns = {
        "source": [row["source"] for row in written["sources"]],
        "kind": [", ".join(row["kinds"]) for row in written["sources"]],
        "concepts": [f"{row['num_concepts']:,}" for row in written["sources"]],
        "left out": [f"{row['num_left_out']:,}" for row in written["sources"]],
        "share": [f"{row['share']:.2%}" for row in written["sources"]],
        "with places": [f"{row['num_with_backgrounds']:,}" for row in written["sources"]],
        "examples": [", ".join(row["examples"]) for row in written["sources"]],
    }
    alignment = ("left", "left", "right", "right", "right", "right", "left")
    text = tabulate(
        columns, headers="keys", tablefmt="plain", disable_numparse=True, colalign=alignment
    )
    note = "\nleft out: an earlier source has the same concept, and keeps it"
    return text + note if written["left_out"] else text


def _by_source(concepts: Sequence[Concept]) -> dict[str, list[Concept]]:
    found: dict[str, list[Concept]] = {}
    for concept in concepts:
        found.setdefault(concept.source, []).append(concept)
    return found
