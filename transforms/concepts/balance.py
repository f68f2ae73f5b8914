"""Balance: the shares of sources, templates and concepts beside those that the prompts plan.

Filters drop more captions of some concepts than of others, and so does deduplication; here one sees
how far that moved the corpus away from what was asked for.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

Group = tuple[str, str, str]
"""Source, concept and template of captions."""

GROUP_COLUMNS = ["source", "concept", "template"]
"""Columns of a caption shard that make its group."""

_BY: dict[str, tuple[int, ...]] = {"source": (0,), "template": (2,), "concept": (0, 1)}
"""What is compared, and the parts of a group that make it: sources may share a concept's name."""

_DIGITS = 9
"""Of a share: sums of equal parts are equal then."""


def balance(counts: Iterable[tuple[Group, int]], plan: Mapping[Group, float]) -> dict[str, Any]:
    """Shares made and planned.

    Args:
        counts: Captions of each group.
        plan: Expected share of each group; empty when nothing was planned.

    Returns:
        Per source, template and concept a list of {name, source, captions, share, planned}, the
        largest plan first; `planned` is null without a plan, `source` only stands at concepts.
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
