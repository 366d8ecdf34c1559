"""What the runs show, in words that claim no more than the intervals do."""

from __future__ import annotations

from collections.abc import Sequence

from tailora.report import formats
from tailora.report.compare import PairedDifference, Pairs
from tailora.report.groups import Group, by_place, short_model
from tailora.report.records import Problem

_DETAILED_GROUPS = 3


def summarise(groups: Sequence[Group], pairs: Sequence[PairedDifference], problems: Sequence[Problem]) -> list[str]:
    """Write the summary, one sentence an entry.

    Args:
        groups: The groups of the report.
        pairs: The paired differences of the same runs.
        problems: What was left out.

    Returns:
        Sentences in reading order.
    """
    left_out = sum(problem.left_out for problem in problems)
    if not groups:
        return [
            f"No finished run: {formats.plural(left_out, 'folder')} could not be used, for the reasons listed below."
        ]
    sentences = [_count(groups, left_out)]
    if len(groups) <= _DETAILED_GROUPS:
        own = by_place(pairs)
        for group in groups:
            sentences += _group(group, own.get(group.place, []))
    else:
        sentences += _overview(groups, pairs)
    tested = sum(pair.difference is not None for pair in pairs)
    if tested >= 5 and any(pair.excludes_zero for pair in pairs):
        sentences.append(
            f"Of {tested} intervals at 95 % about one in twenty excludes zero by chance; "
            "the verdicts allow for it (Holm)."
        )
    fewest = min(len(runs) for group in groups for runs in group.recipes.values())
    if fewest < 3:
        seeds = formats.plural(fewest, "seed")
        sentences.append(f"Some recipe has only {seeds}: the noise of training itself is hardly measured.")
    return sentences


def _count(groups: Sequence[Group], left_out: int) -> str:
    """Say how much the report stands on."""
    runs = [run for group in groups for run in group.runs]
    recipes = {run.recipe for run in runs}
    seeds = sorted({len(found) for group in groups for found in group.recipes.values()})
    each = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    text = f"{formats.plural(len(runs), 'finished run')} of {formats.plural(len(recipes), 'recipe')}, {each} "
    text += f"seed{'s' if seeds[-1] > 1 else ''} each"
    if len(groups) > 1:
        text += f", in {len(groups)} combinations of task, model and budget"
    if left_out:
        verb = "is" if left_out == 1 else "are"
        text += f"; {formats.plural(left_out, 'folder')} {verb} left out for the reasons at the end"
    return text + "."


def _group(group: Group, pairs: Sequence[PairedDifference]) -> list[str]:
    """Say which recipe came first in a group, and whether that is more than chance."""
    place = f"On {group.task} ({short_model(group.model)}, {group.budget or 'no budget'})"
    names = list(group.recipes)
    first = group.recipes[names[0]][0]
    mean = _mean(group, names[0])
    if len(names) == 1:
        reached = f"{place} {names[0]} reaches {first.primary} {formats.score(mean)}"
        return [f"{reached}; there is no other recipe to compare with."]
    tied = [name for name in names if _mean(group, name) == mean]
    if len(tied) > 1:
        return [f"{place} {formats.series(tied)} share the best mean {first.primary}, {formats.score(mean)}."]
    if names[0] == group.baseline:
        second = f"{names[1]} follows with {formats.score(_mean(group, names[1]))}"
        better = [pair.recipe for pair in pairs if pair.verdict.startswith("better")]
        hint = (
            "no recipe is shown to be better than it"
            if not better
            else f"yet example by example {formats.series(better)} is ahead"
        )
        lead = f"{place} the baseline {names[0]} has the best mean {first.primary}, {formats.score(mean)}"
        return [f"{lead}; {second}, and {hint}."]
    base = formats.score(_mean(group, group.baseline))
    lead = f"{place} {names[0]} has the best mean {first.primary}, {formats.score(mean)}"
    lead += f" against {base} of {group.baseline}."
    pair = next((pair for pair in pairs if pair.recipe == names[0]), None)
    return [lead, _interval(pair)] if pair else [lead]


def _interval(pair: PairedDifference) -> str:
    """Say what the interval of the winner's difference to the baseline shows."""
    if pair.difference is None:
        return f"The two cannot be compared example by example: {pair.reason}."
    seeds, examples = formats.plural(len(pair.seeds), "seed"), formats.plural(pair.examples, "example")
    start = (
        f"Paired over {seeds} and {examples}, its {pair.quantity} differs by {formats.signed(pair.difference)}, "
        f"95 % interval {formats.signed(pair.low)} to {formats.signed(pair.high)}"
    )
    if not pair.excludes_zero:
        return f"{start}: the interval holds zero, so no difference is shown{_could_have(pair)}."
    if "not after correcting" in pair.verdict:
        return f"{start}: the interval excludes zero, but not after correcting for the number of comparisons."
    if pair.verdict.startswith("worse"):
        return f"{start}: the interval excludes zero, and against the recipe with the better mean score."
    return f"{start}: the interval excludes zero."


def _could_have(pair: PairedDifference) -> str:
    """Say what a comparison that shows nothing could have shown."""
    if not pair.mde:
        return ""
    least = f"beyond ±{formats.score(pair.mde)}"
    if pair.short_of:
        return f"; with so few {pair.short_of} only one {least} would (80 % power)"
    return f", and one {least} would have been (80 % power)"


def _overview(groups: Sequence[Group], pairs: Sequence[PairedDifference]) -> list[str]:
    """Count verdicts where there are too many groups to tell one by one."""
    wins: dict[str, int] = {}
    for group in groups:
        if len(group.recipes) > 1:
            wins[next(iter(group.recipes))] = wins.get(next(iter(group.recipes)), 0) + 1
    sentences = []
    if wins:
        ranked = sorted(wins, key=lambda name: (-wins[name], name))
        told = formats.series([f"{name} {formats.plural(wins[name], 'time')}" for name in ranked[:4]])
        sentences.append(f"The best mean score goes to {told}, out of {sum(wins.values())}.")
    tested = [pair for pair in pairs if pair.difference is not None]
    if tested:
        clear = [pair for pair in tested if pair.clear]
        better = sum(pair.better for pair in clear)
        blind = sum(bool(pair.short_of) for pair in tested if not pair.clear)
        sentences.append(
            f"Of {len(tested)} paired comparisons with the baseline, {better} show a better recipe, "
            f"{len(clear) - better} a worse one, and {len(tested) - len(clear)} show no difference after "
            "correcting for their number."
        )
        if blind:
            verb = "has" if blind == 1 else "have"
            sentences.append(
                f"Of these last, {blind} {verb} too few seeds or examples to find a difference that matters."
            )
    if isinstance(pairs, Pairs) and pairs.ranks is not None:
        sentences.append(pairs.friedman)
    return sentences


def _mean(group: Group, recipe: str) -> float:
    scores = [run.score for run in group.recipes[recipe]]
    return sum(scores) / len(scores)
