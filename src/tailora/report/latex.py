"""The comparison table for a paper."""

from __future__ import annotations

from collections.abc import Sequence

from tailora.report import formats
from tailora.report.compare import ComparisonRow, PairedDifference, Pairs
from tailora.report.groups import by_place, place_label
from tailora.report.tables import STANDINGS, details_of, p_text, standing_of

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\N{MINUS SIGN}": "$-$",
    "±": r"$\pm$",
    "–": "--",
}


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it is, on one line."""
    return "".join(_SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def comparison_latex(rows: Sequence[ComparisonRow], pairs: Sequence[PairedDifference] = ()) -> str:
    r"""Render booktabs tables: one per task, model and budget, the best score in bold, then the paired tests.

    Args:
        rows: Rows from ``compare_runs``.
        pairs: Entries from ``paired_differences``, which add the difference to the baseline with its interval.

    Returns:
        LaTeX for ``\input``, which needs the package booktabs; empty without rows.
    """
    found = {(pair.task, pair.model, pair.budget, pair.recipe): pair for pair in pairs}
    parts = ["% Needs \\usepackage{booktabs}, and \\usepackage[T1]{fontenc} for quotation marks.\n"] if rows else []
    for key, own in by_place(rows).items():
        first = own[0]
        paired = any((*key, row.recipe) in found for row in own)
        better = r"$\uparrow$" if first.higher_is_better else r"$\downarrow$"
        head = ["recipe", f"{escape_latex(first.primary)} {better}", "seeds", "parameters"]
        head += ["difference", r"95\,\% interval"] if paired else []
        lines = [r"\begin{table}", r"  \centering", f"  \\caption{{{_caption(own)}}}"]
        lines += [f"  \\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"    \toprule"]
        lines += [f"    {' & '.join(head)} \\\\", r"    \midrule"]
        lines += [f"    {' & '.join(_cells(row, found.get((*key, row.recipe)), paired))} \\\\" for row in own]
        lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
        parts.append("\n".join(lines) + "\n")
    parts += _tests(pairs)
    return "\n".join(parts)


def _tests(pairs: Sequence[PairedDifference]) -> list[str]:
    """What the verdicts rest on, and how the recipes stand over all places."""
    parts = []
    for key, own in by_place(pair for pair in pairs if pair.difference is not None).items():
        head = ["recipe", r"$p$", r"$p$ (Holm)", r"$p$ by seed", "McNemar", "detectable"]
        rows = []
        for pair in own:
            detectable, _, p_value, by_seed, exact, _ = details_of(pair)
            rows.append([pair.recipe, p_value, p_text(pair.p_holm), by_seed, exact, detectable])
        caption = f"{place_label(*key)}: paired tests of {own[0].quantity} against {own[0].baseline}, and the smallest "
        caption += "difference that is found with 80 % power."
        parts.append(_plain_table(head, rows, caption))
    standings = pairs.standings if isinstance(pairs, Pairs) else []
    if isinstance(pairs, Pairs) and standings:
        against = ", ".join(dict.fromkeys(pair.baseline for pair in pairs))
        caption = f"Wins, ties and losses against {against}, corrected after Holm. {pairs.friedman}"
        parts.append(_plain_table(["recipe", *STANDINGS], [[e.recipe, *standing_of(e)] for e in standings], caption))
    return parts


def _plain_table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A booktabs table; the head is LaTeX, the rest is text."""
    lines = [r"\begin{table}", r"  \centering", f"  \\caption{{{escape_latex(caption)}}}"]
    lines += [f"  \\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"    \toprule", f"    {' & '.join(head)} \\\\"]
    lines += [r"    \midrule", *(f"    {' & '.join(map(escape_latex, row))} \\\\" for row in rows)]
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]) + "\n"


def _caption(rows: Sequence[ComparisonRow]) -> str:
    first = rows[0]
    text = f"{place_label(first.task, first.model, first.budget)}: mean over seeds"
    text += " ± standard deviation" if any(row.score_std is not None for row in rows) else ""
    baseline = next((row.recipe for row in rows if row.baseline), "")
    return escape_latex(f"{text}; baseline {baseline}." if baseline else f"{text}.")


def _cells(row: ComparisonRow, pair: PairedDifference | None, paired: bool) -> list[str]:
    score = escape_latex(formats.with_spread(row.score, row.score_std))
    cells = [escape_latex(row.recipe), f"\\textbf{{{score}}}" if row.best else score, str(len(row.seeds))]
    # Braces keep the comma from being set as a list.
    cells.append(formats.count(row.adapter_params).replace(",", "{,}").replace("–", "--"))
    if paired:
        known = pair is not None and pair.low is not None
        cells.append(escape_latex(formats.signed(pair.difference)) if pair and known else "--")
        low, high = (formats.signed(pair.low), formats.signed(pair.high)) if pair and known else ("", "")
        cells.append(f"[{escape_latex(low)}, {escape_latex(high)}]" if known else "--")
    return cells
