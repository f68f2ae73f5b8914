"""Occurrences: the number of each caption among those with the same text (paper, Table 2).

The paper repeats captions where a strategy has too few. The first caption with a text, by its
ordinal, is occurrence 0 and keeps its id; each later one gets an id, and so images, of its own.
No task holds all captions with one text, since these may be all captions there are:

    count_equal      captions of a group of shards -> how often each text is in it
    counted_before   counts of all groups -> how many equal captions are before a group
    number_equal     captions of a group -> their occurrences, ids and keys
"""

import numpy as np
import pyarrow as pa

from transforms.core.seeding import caption_id
from transforms.curation.columns import changes, column, order_keys


def count_equal(rows: pa.Table, group: int) -> pa.Table:
    """Count the captions of each text in a group.

    Args:
        rows: [N] captions with their `key`, which equal captions share.
        group: Number of the group.

    Returns:
        Columns `key`, `group`, `first` (smallest ordinal of the text in the group) and `times`.
    """
    keys, ordinals = rows["key"].to_numpy(), rows["ordinal"].to_numpy()
    order = np.lexsort((ordinals, keys))
    starts = np.flatnonzero(changes(keys[order]))
    return pa.table(
        {
            "key": keys[order][starts],
            "group": np.full(len(starts), group, np.int64),
            "first": ordinals[order][starts],
            "times": np.diff(np.append(starts, len(keys))),
        }
    )


def counted_before(counts: pa.Table) -> pa.Table:
    """Return how many equal captions are before those of a group.

    Args:
        counts: Tables of `count_equal` for all groups, concatenated. Groups of shards have
            consecutive ordinals.

    Returns:
        Columns `key`, `group` and `before`; without the rows for which `before` is 0.
    """
    columns = {name: counts[name].to_numpy() for name in ("key", "group", "times", "first")}
    order = np.lexsort((columns["first"], columns["key"]))
    key, group, times = (columns[name][order] for name in ("key", "group", "times"))
    so_far = np.cumsum(times) - times
    starts = np.flatnonzero(changes(key))
    before = so_far - np.repeat(so_far[starts], np.diff(np.append(starts, len(key))))
    later = before > 0
    return pa.table({"key": key[later], "group": group[later], "before": before[later]})


def number_equal(rows: pa.Table, before: pa.Table, seed: int) -> pa.Table:
    """Number the captions of a group, and give each its own id and key.

    Args:
        rows: [N] captions of the group with their `key`.
        before: Rows of `counted_before` for the group.
        seed: Seed of the random order.

    Returns:
        [N] captions with a column `occurrence`; `caption_id` and `key` follow from it.
    """
    rows = rows.sort_by([("key", "ascending"), ("ordinal", "ascending")])
    keys = rows["key"].to_numpy()
    starts = np.flatnonzero(changes(keys))
    repeats = np.diff(np.append(starts, len(keys)))
    before = before.sort_by("key")
    known = before["key"].to_numpy()
    offsets = np.zeros(len(starts), np.int64)
    offsets[np.isin(keys[starts], known)] = before["before"].to_numpy()
    occurrences = np.arange(len(keys)) - np.repeat(starts - offsets, repeats)
    later = np.flatnonzero(occurrences)
    ids = np.array(rows["caption_id"].to_pylist(), object)
    texts = rows["text"].take(later).to_pylist()
    ids[later] = [
        caption_id(*each) for each in zip(texts, occurrences[later].tolist(), strict=True)
    ]
    own = {"caption_id": pa.array(ids, pa.string()), "occurrence": pa.array(occurrences)}
    own["key"] = pa.array(order_keys(seed, own["caption_id"]))
    kept = rows.drop_columns(["caption_id", "key"])
    return pa.table({**{name: column(kept, name) for name in kept.column_names}, **own})
