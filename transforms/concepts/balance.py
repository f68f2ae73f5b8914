"""Balance: actual and planned shares of sources, templates and concepts.

Filters and deduplication drop more captions of some concepts than of others. The balance shows how
far the corpus is from the shares that were asked for.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

Group = tuple[str, str, str]
"""Source, concept and template of captions."""

GROUP_COLUMNS = ["source", "concept", "template"]
"""Columns of a caption shard that make up a `Group`."""

_BY: dict[str, tuple[int, ...]] = {"source": (0,), "template": (2,), "concept": (0, 1)}
"""What is compared -> the parts of a group that identify it; sources may share a concept's name."""

_DIGITS = 9
"""Decimals of a share; rounding makes sums of equal parts equal."""


def balance(counts: Iterable[tuple[Group, int]], plan: Mapping[Group, float]) -> dict[str, Any]:
    """Compare actual shares with planned ones.

    Args:
        counts: Number of captions of each group.
        plan: Expected share of each group; empty without a plan.

    Returns:
        For "source", "template" and "concept" a list of {name, source, captions, share, planned},
        the largest plan first; `planned` is None without a plan, `source` exists for concepts only.
    """
    made = dict(counts)
    return {kind: _compare(made, plan, parts) for kind, parts in _BY.items()}


def _compare(
    made: Mapping[Group, int], plan: Mapping[Group, float], parts: tuple[int, ...]
) -> list[dict[str, Any]]:
    captions: defaultdict[tuple[str, ...], int] = defaultdict(int)
    planned: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for group, number in made.items():
        captions[tuple(group[part] for part in parts)] += number
    for group, share in plan.items():
        planned[tuple(group[part] for part in parts)] += share
    total = max(sum(captions.values()), 1)
    rows = [
        {
            "name": name[-1],
            **({"source": name[0]} if len(name) > 1 else {}),
            "captions": captions[name],
            "share": round(captions[name] / total, _DIGITS),
            "planned": round(planned[name], _DIGITS) if plan else None,
        }
        for name in {**planned, **captions}
    ]
    return sorted(rows, key=lambda r: (-(r["planned"] or 0), -r["captions"], r["name"]))
