"""``tailora lab``: the planted-rank laboratory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tailora.cli.output import out, print_json, say
from tailora.cli.showing import Json, model_place
from tailora.errors import UserError


def lab(
    family: Annotated[
        list[str] | None, typer.Option("--family", "-f", help="A family of problems; may be given several times.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Problems of each family; default 10, with --quick 2.")] = None,
    first_seed: Annotated[int, typer.Option(help="Seed of the first of them.")] = 0,
    recipes: Annotated[
        str | None,
        typer.Option(help="Contestants, as in 'spectral,fim-lora' or 'spectral:signal=gradient_cross_spectrum'."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", "-b", help="What each may spend.")] = "r=2",
    steps: Annotated[int | None, typer.Option(help="Training steps; default 200, with --quick 60.")] = None,
    rates: Annotated[str | None, typer.Option(help="Learning rates that each is trained at.")] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="Instead of the family's: llama, gpt2, bert, t5 or a model's folder.", callback=model_place),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; as many as processors where left out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few seeds, steps and learning rates.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the records and the page.")] = Path("lab"),
    list_families: Annotated[bool, typer.Option("--list", help="List the families and stop.")] = False,
    json: Json = False,
) -> None:
    """Compare allocators on tasks whose right allocation is known; stopped and started again, it continues."""
    from tailora.lab.families import FAMILIES, STANDARD

    if list_families:
        _list(json)
        return
    for name in family or ():
        FAMILIES.entry(name)
    for option, value in (("--seeds", seeds), ("--workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{option} {value} must be at least 1; raise it")
    count = seeds if seeds is not None else 2 if quick else 10
    from tailora.lab.page import results_json, write_results
    from tailora.lab.run import problems_of, run_lab

    settings = _settings(recipes, budget, steps, rates, quick)
    problems = problems_of(family or STANDARD, range(first_seed, first_seed + count))
    if architecture is not None:
        from dataclasses import replace

        problems = [replace(spec, architecture=architecture) for spec in problems]
    records = run_lab(problems, settings, output, workers=workers, told=_tell)
    page, rows = write_results(records, output)
    if json:
        print_json({"report": str(page), **results_json(records, rows)})
        return
    _show(rows)
    found = results_json(records, rows)
    for name, entry in found["left_out"].items():
        say(f"tailora: {name} could not decide on {entry['problems']} of {len(records)} problems: {entry['reason']}")
    for warning in found["warnings"]:
        say(f"tailora: {warning}")
    print(f"report: {page}")


def _settings(recipes: str | None, budget: str, steps: int | None, rates: str | None, quick: bool) -> Any:
    """Read who competes, and how."""
    from tailora.lab.contestants import contestant_names
    from tailora.lab.solve import RATES, Settings

    names = contestant_names() if recipes is None else _split(recipes)
    try:
        chosen = (RATES[1:2] if quick else RATES) if rates is None else tuple(map(float, rates.split(",")))
    except ValueError:
        raise UserError(f"--rates {rates!r} must be numbers separated by commas, such as 0.006,0.012") from None
    return Settings(
        contestants=tuple(names),
        budget=budget,
        steps=steps if steps is not None else 60 if quick else 200,
        rates=chosen,
    )


def _split(recipes: str) -> list[str]:
    """Split contestants at commas, those between the options of one contestant excepted."""
    found: list[str] = []
    for part in filter(None, (piece.strip() for piece in recipes.split(","))):
        if found and ":" in found[-1] and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part)
    if not found:
        raise UserError(f"--recipes {recipes!r} names nobody; name at least one, such as 'spectral'")
    return found


def _tell(spec: Any, done: int, count: int) -> None:
    """Say that a problem is finished."""
    say(f"tailora: {spec.family} seed {spec.seed} solved ({done} of {count})")


def _list(json: bool) -> None:
    """Show the families."""
    from tailora.lab.families import FAMILIES, STANDARD

    if json:
        print_json([{"name": e.name, "summary": e.summary, "standard": e.name in STANDARD} for e in FAMILIES])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("family")
    table.add_column("what is planted", overflow="fold")
    for entry in FAMILIES:
        table.add_row(entry.name, entry.summary)
    out().print(table)


def _show(rows: Any) -> None:
    """Print the table of contestants by families, or of each family where no gap can be closed."""
    from rich.table import Table

    from tailora.lab.page import interval_words, overview, percent

    families = list(dict.fromkeys(row.family for row in rows))
    shown = overview(rows, families)
    console = out()
    if shown["families"]:
        table = Table(title="oracle gap closed (0 uniform, 1 oracle)", box=None, pad_edge=False, title_justify="left")
        table.add_column("contestant")
        for name in [*shown["families"], "mean"]:
            table.add_column(name, justify="right")
        for line in shown["rows"]:
            table.add_row(line["name"], *(cell["text"] for cell in line["cells"]), line["mean"])
        console.print(table)
    for family in (name for name in families if name not in shown["families"]):
        table = Table(title=f"{family}: loss against uniform", box=None, pad_edge=False, title_justify="left")
        for name in ("contestant", "difference", "95 % interval", "loss"):
            table.add_column(name, justify="left" if name == "contestant" else "right")
        for row in (row for row in rows if row.family == family):
            low, high = percent(row.difference.low), percent(row.difference.high)
            table.add_row(row.contestant, percent(row.difference.mean), f"{low} to {high}", f"{row.loss:.4f}")
        console.print(table)
    if len(rows) and len(rows[0].seeds) < 2:
        say(f"tailora: one seed tells nothing of the spread ({interval_words(rows[0].gap)}); give --seeds 3 or more")
