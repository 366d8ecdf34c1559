"""The comparison as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, fields

from tailora.report import formats
from tailora.report.compare import ComparisonRow, PairedDifference, Pairs
from tailora.report.groups import by_place, place_label
from tailora.report.pairing import Standing

# An underscore inside a word means nothing to Markdown, and names are full of them.
_SPECIAL = re.compile(r"([\\`*{}\[\]<>|#]|(?<!\w)_|_(?!\w))")


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lay out a Markdown table.

    Args:
        head: Column headings.
        rows: Cells, already escaped where they hold free text.
        left: How many leading columns are text; the others are aligned to the right.

    Returns:
        The table, with a final line break.
    """
    lines = [head, ["---" if place < left else "---:" for place in range(len(head))], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comparison_markdown(rows: Sequence[ComparisonRow]) -> str:
    """Render the comparison table, one Markdown table per task, model and budget.

    Args:
        rows: Rows from ``compare_runs``.

    Returns:
        Markdown text.
    """
    parts = []
    for key, own in by_place(rows).items():
        perplexity = any(row.perplexity is not None for row in own)
        better = "higher" if own[0].higher_is_better else "lower"
        label = f"{place_label(*key)}: {own[0].primary} ({better} is better)"
        head = [
            "recipe",
            own[0].primary,
            "95 % interval",
            "seeds",
            *([] if own[0].primary == "loss" else ["loss"]),
            *(["perplexity"] if perplexity else []),
            "adapter parameters",
        ]
        head += ["of the base model", "head parameters", "learning rate", "training", "peak memory"]
        body = [
            [
                escape_markdown(row.recipe) + (" (baseline)" if row.baseline else ""),
                f"**{formats.with_spread(row.score, row.score_std)}**"
                if row.best
                else formats.with_spread(row.score, row.score_std),
                range_text(row.score_low, row.score_high),
                seeds_text(row),
                *([] if row.primary == "loss" else [formats.score(row.loss)]),
                *([formats.score(row.perplexity)] if perplexity else []),
                formats.count(row.adapter_params),
                formats.share(row.base_share),
                formats.count(row.head_params),
                formats.rate(row.learning_rate),
                formats.seconds(row.train_s),
                formats.megabytes(row.peak_memory_mb),
            ]
            for row in own
        ]
        parts.append(f"{escape_markdown(label)}\n\n{markdown_table([escape_markdown(cell) for cell in head], body)}")
    return "\n".join(parts)


def seeds_text(row: ComparisonRow) -> str:
    """Write how many seeds finished, and out of how many where some did not."""
    number = len(row.seeds)
    return f"{number} of {number + row.left_out}" if row.left_out else str(number)


def paired_markdown(pairs: Sequence[PairedDifference]) -> str:
    """Render the paired differences: the verdicts, what they rest on, and how the recipes stand over all places.

    Args:
        pairs: Entries from ``paired_differences``.

    Returns:
        Markdown text, empty without entries.
    """
    if not pairs:
        return ""
    head = ["task, model, budget", "recipe", "against", "of", "difference", "95 % interval", "p (Holm)", "seeds"]
    head += ["examples", "verdict"]
    body = [
        [
            escape_markdown(place_label(pair.task, pair.model, pair.budget)),
            escape_markdown(pair.recipe),
            escape_markdown(pair.baseline),
            pair.quantity,
            formats.signed(pair.difference),
            interval_text(pair),
            p_text(pair.p_holm),
            str(len(pair.seeds)),
            formats.count(pair.examples),
            escape_markdown(pair.verdict),
        ]
        for pair in pairs
    ]
    parts = [markdown_table(head, body, left=4)]
    known = [pair for pair in pairs if pair.difference is not None]
    if known:
        details = [
            [
                escape_markdown(place_label(pair.task, pair.model, pair.budget)),
                escape_markdown(pair.recipe),
                *details_of(pair),
            ]
            for pair in known
        ]
        parts += [DETAILS_HOW + "\n", markdown_table(["task, model, budget", "recipe", *DETAILS], details, left=2)]
    standings = pairs.standings if isinstance(pairs, Pairs) else []
    if isinstance(pairs, Pairs) and standings:
        rows = [[escape_markdown(entry.recipe), *standing_of(entry)] for entry in standings]
        against = ", ".join(dict.fromkeys(pair.baseline for pair in pairs))
        told = f"Wins, ties and losses against {against} by the corrected test. {pairs.friedman}"
        parts += [escape_markdown(told) + "\n", markdown_table(["recipe", *STANDINGS], rows)]
    return "\n".join(parts)


DETAILS = ("detectable", "seeds needed", "p", "p by seed", "McNemar", "McNemar by seed")
DETAILS_HOW = (
    "Detectable: the smallest true difference that this comparison finds with 80 % power. Seeds needed: with these "
    "examples, for a difference of the observed size. By seed: paired t-test over seeds on the primary score. McNemar: "
    "exact, about these trained models and not about other seeds."
)
STANDINGS = ("average rank", "wins", "ties", "losses")


def details_of(pair: PairedDifference) -> list[str]:
    """Write what a verdict rests on, in the order of ``DETAILS``."""
    return [
        formats.DASH if pair.mde is None else f"±{formats.score(pair.mde)}",
        pair.needs,
        p_text(pair.p_value),
        p_text(pair.seed_p),
        p_text(pair.mcnemar_p),
        " ".join(map(p_text, pair.mcnemar_by_seed)) if len(pair.mcnemar_by_seed) > 1 else formats.DASH,
    ]


def standing_of(entry: Standing) -> list[str]:
    """Write a recipe's standing, in the order of ``STANDINGS``; the baseline has no wins over itself."""
    rank = formats.DASH if entry.rank is None else f"{entry.rank:.2f}"
    if entry.wins + entry.ties + entry.losses == 0:
        return [rank, *[formats.DASH] * 3]
    return [rank, *map(str, (entry.wins, entry.ties, entry.losses))]


def range_text(low: float | None, high: float | None) -> str:
    """Write two scores as ``0.7100 to 0.7300``."""
    return formats.DASH if low is None else f"{formats.score(low)} to {formats.score(high)}"


def interval_text(pair: PairedDifference) -> str:
    """Write the interval as ``+0.0100 to +0.0300``."""
    return formats.DASH if pair.low is None else f"{formats.signed(pair.low)} to {formats.signed(pair.high)}"


def p_text(value: float | None) -> str:
    """Write a p-value to three decimals, never as zero."""
    if value is None:
        return formats.DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def comparison_csv(rows: Sequence[ComparisonRow], pairs: Sequence[PairedDifference] = ()) -> str:
    """Render the comparison as CSV, full precision, one line per recipe with its paired difference.

    Args:
        rows: Rows from ``compare_runs``.
        pairs: Entries from ``paired_differences``.

    Returns:
        CSV text with a heading line; an unknown number is an empty field.
    """
    names = [field.name for field in fields(ComparisonRow)]
    paired = ["quantity", "difference", "low", "high", "p_value", "p_holm", "examples", "verdict", "mde", "margin"]
    paired += ["seeds_needed", "seed_p", "mcnemar_p", "mcnemar_by_seed"]
    overall = ("rank", "wins", "ties", "losses")
    standings = {entry.recipe: entry for entry in pairs.standings} if isinstance(pairs, Pairs) else {}
    found = {(pair.task, pair.model, pair.budget, pair.recipe): pair for pair in pairs}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*names, *(f"paired_{name}" for name in paired), *(f"overall_{name}" for name in overall)])
    for row in rows:
        values = {**asdict(row), "seeds": " ".join(map(str, row.seeds))}
        pair = found.get((row.task, row.model, row.budget, row.recipe))
        tail = [getattr(pair, name) if pair else None for name in paired]
        tail[-1] = " ".join(map(str, pair.mcnemar_by_seed)) if pair else None
        entry = standings.get(row.recipe)
        tail += [getattr(entry, name) if entry else None for name in overall]
        writer.writerow(["" if value is None else value for value in [*(values[name] for name in names), *tail]])
    return stream.getvalue()
