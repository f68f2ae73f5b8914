"""The page's sections on captions and images: what they are like, and how they were come by."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipelines.report.chart import column_chart
from pipelines.report.corpus import MAX_WORDS, CaptionFacts, Example, ImageFacts, Spread
from pipelines.report.html import MISSING, folded, note, number_of_bytes, percent, table
from pipelines.report.stages import StageSummary

NUM_CONCEPTS = 10
MIN_EXPECTED = 5.0
"""Captions that a concept must be planned to have, to be called well or badly served: below, chance
decides."""

_DROP = "drop_"


def captions_section(facts: CaptionFacts | None, raw: StageSummary | None) -> str:
    """All about the captions."""
    if facts is None:
        return MISSING.format("The captions stage")
    parts = [_writing(raw)] if raw is not None else []
    if facts.curation is not None:
        parts.append(_duplicates(facts.curation))
    over = "all captions" if facts.balance_is_complete else f"{facts.num_read:,} captions"
    parts += [
        f"<h3>Shares of sources and templates, over {over}</h3>",
        _shares(facts.balance["source"], "source"),
        _shares(facts.balance["template"], "template"),
        _concepts(facts.balance["concept"]),
        f"<h3>Words per caption, over {facts.num_read:,} captions</h3>",
        f'<div class="charts"><figure>{_lengths(facts.lengths)}</figure></div>',
        "<h3>Random captions</h3>",
        table(
            ("caption", "concept", "source", "template"),
            [
                [row["text"], row["concept"], row["source"], row["template"]]
                for row in facts.examples
            ],
        ),
    ]
    return "\n".join(parts)


def images_section(
    examples: Sequence[Example], facts: ImageFacts | None, stage: StageSummary | None
) -> str:
    """Statistics and the contact sheet."""
    if stage is None or facts is None:
        return MISSING.format("The images stage")
    rows = [
        _spread_row("brightness (mean, of 255)", facts.brightness),
        _spread_row("contrast (standard deviation)", facts.contrast),
        ["size of a file", *map(number_of_bytes, _values(facts.num_bytes))],
    ]
    per_second = stage.per_second(stage.num_samples * stage.images_per_sample)
    measured = f"{facts.num_measured:,} images of {facts.size} were measured; "
    sheet = '<div class="sheet">' + "".join(_card(example) for example in examples) + "</div>"
    return (
        note(f"{measured}{per_second:,.1f} images were painted per second of work.")
        + table(("of an image", "5 % below", "median", "5 % above"), rows)
        + sheet
    )


def _writing(raw: StageSummary) -> str:
    """How fast captions were written, and why completions were dropped."""
    asked = raw.num_samples + raw.num_failures + raw.counts.get("retries", 0)
    tokens = raw.counts.get("tokens", 0)
    speed = f"{raw.per_second(raw.num_samples):,.1f} captions"
    if tokens:
        speed += f" and {raw.per_second(tokens):,.0f} tokens"
    dropped = {name: n for name, n in raw.counts.items() if name.startswith(_DROP)}
    rows = [
        [name.removeprefix(_DROP).replace("_", " "), f"{number:,}", percent(number / asked)]
        for name, number in sorted(dropped.items(), key=lambda item: -item[1])
    ]
    rows.append(
        ["all reasons", f"{sum(dropped.values()):,}", percent(sum(dropped.values()) / asked)]
    )
    return (
        note(f"{speed} were written per second of work.")
        + "<h3>Completions that were dropped, and asked again</h3>"
        + table(("reason", "number", "of completions"), rows)
    )


def _duplicates(curation: Mapping[str, Any]) -> str:
    raw = max(curation["num_raw"], 1)
    names = {
        "num_raw": "written",
        "num_exact_duplicates": "equal to another one",
        "num_near_duplicates": "near duplicates",
        "num_left_over": "more than were wanted",
    }
    rows = [
        [title, f"{curation[name]:,}", percent(curation[name] / raw)]
        for name, title in names.items()
    ]
    near = [
        [example["dropped"], example["resembled"], f"{example['similarity']:.2f}"]
        for example in curation["near_examples"]
    ]
    equal = [[example["text"], f"{example['times']:,}"] for example in curation["exact_examples"]]
    return (
        "<h3>Duplicates</h3>"
        + table(("captions", "number", "of those written"), rows)
        + folded(
            "Near duplicates, for example",
            table(("dropped", "resembles", "similarity"), near) if near else note("None."),
        )
        + folded(
            "Captions that were written most often",
            table(("caption", "times"), equal) if equal else note("None was written twice."),
        )
    )


def _shares(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    cells = [
        [row["name"], f"{row['captions']:,}", percent(row["share"]), percent(row["planned"])]
        for row in rows
    ]
    return table((title, "captions", "share", "planned"), cells)


def _concepts(rows: Sequence[Mapping[str, Any]]) -> str:
    """The concepts with most and fewest captions, for what was planned of each."""
    total = sum(row["captions"] for row in rows)
    planned = any(row["planned"] for row in rows)
    counted = [row for row in rows if not planned or (row["planned"] or 0) * total >= MIN_EXPECTED]
    without = sum(not row["captions"] for row in rows)

    def served(row: Mapping[str, Any]) -> float:
        return float(row["captions"] / (row["planned"] * total) if planned else row["captions"])

    def cells(row: Mapping[str, Any]) -> list[str]:
        made = f"{row['captions']:,}"
        return [row["name"], row["source"], made, f"{served(row):.2f}" if planned else ""]

    ranked = sorted(counted, key=lambda row: (-served(row), row["name"]))
    titles = ("concept", "source", "captions", "times the plan")
    least = ranked[NUM_CONCEPTS:][-NUM_CONCEPTS:]
    text = f"{len(rows):,} concepts, {without:,} of them without a caption."
    if planned:
        text += f" Compared are those planned to have at least {MIN_EXPECTED:g} captions."
    parts = ["<h3>Concepts</h3>", note(text)]
    parts.append(folded("Most captions", table(titles, [cells(r) for r in ranked[:NUM_CONCEPTS]])))
    if least:
        parts.append(folded("Fewest captions", table(titles, [cells(row) for row in least[::-1]])))
    return "".join(parts)


def _lengths(lengths: Sequence[int]) -> str:
    last = max((words for words, number in enumerate(lengths) if number), default=0)
    labels = [f"{words}{'+' if words == MAX_WORDS else ''}" for words in range(last + 1)]
    return column_chart("captions by number of words", labels, lengths[: last + 1])


def _values(spread: Spread) -> tuple[float, float, float]:
    return spread.low, spread.median, spread.high


def _spread_row(title: str, spread: Spread) -> list[str]:
    return [title, *(f"{value:.1f}" for value in _values(spread))]


def _card(example: Example) -> str:
    images = "".join(
        f'<img src="{_data_uri(image)}" alt="Image {number} of the caption below" loading="lazy">'
        for number, image in enumerate(example.images, 1)
    )
    return (
        f'<figure><div class="row">{images}</div><figcaption>{escape(example.text)} '
        f"<small>{escape(example.concept)}</small></figcaption></figure>"
    )


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "webp" if image[:4] == b"RIFF" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
