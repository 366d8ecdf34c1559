"""``tailora plan``: decide rank and alpha per target, and compare plans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tailora.cli.output import out, print_json, say
from tailora.cli.profiling import tell_noise
from tailora.cli.showing import Json, TrustCode, model_place
from tailora.errors import UserError


def plan(
    profile: Annotated[Path | None, typer.Option("--profile", help="A saved profile.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Instead: a model, for recipes without data.", callback=model_place),
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Recipe name or YAML file.")] = "lora",
    budget: Annotated[str | None, typer.Option("--budget", "-b", help="r=8, 2.4M, 0.5%, 12MB or a number.")] = None,
    placement: Annotated[str, typer.Option("--placement", "-p", help="Candidate targets.")] = "all-linear",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the plan here as JSON.")] = None,
    r_min: Annotated[int | None, typer.Option(help="Rank every target gets at least.")] = None,
    r_max: Annotated[str | None, typer.Option(help="Largest rank: 16, or 4x the uniform rank.")] = None,
    multiple: Annotated[int | None, typer.Option(help="Ranks are multiples of this.")] = None,
    signal: Annotated[str | None, typer.Option(help="Signal the allocator reads.")] = None,
    ranks: Annotated[Path | None, typer.Option(help="Ranks file, for the recipe 'explicit'.")] = None,
    seed: Annotated[int, typer.Option(help="For allocators that draw at random.")] = 0,
    saved: Annotated[Path | None, typer.Option("--from", help="Instead: a plan saved before.")] = None,
    emit: Annotated[
        str | None, typer.Option(help="Print the plan for others: peft, trl, adapter-config, axolotl or unsloth.")
    ] = None,
    task_type: Annotated[
        str | None, typer.Option(help="With --emit: peft's task type, such as CAUSAL_LM or SEQ_CLS.")
    ] = None,
    diff: Annotated[tuple[Path, Path] | None, typer.Option(help="Compare two saved plans and stop.")] = None,
    trust_remote_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Decide rank and alpha per target under a budget, or compare two plans (--diff A B)."""
    if diff is not None:
        _show_diff(*diff, json=json)
        return
    _check_emit(emit, task_type, json=json)
    overrides: dict[str, Any] = {"r_min": r_min, "r_max": r_max, "multiple": multiple, "signal": signal}
    overrides = {key: value for key, value in overrides.items() if value is not None}
    if ranks is not None:
        overrides["ranks"] = str(ranks)
    if saved is not None:
        changed = {"recipe": recipe != "lora", "placement": placement != "all-linear", "seed": seed != 0}
        made = _load(saved, {"profile": profile, "budget": budget, **overrides, **changed})
    else:
        from tailora.plans import plan as make_plan

        source = _source(profile, model, trust_remote_code=trust_remote_code)
        made = make_plan(source, recipe, budget, placement, seed=seed, **overrides)
        if profile is not None and made.recipe.allocation.name == "gelora":
            tell_noise(source)
    if output is not None:
        made.save(output)
        say(f"tailora: plan {made.hash[:12]} written to {output}")
    if json:
        print_json(made.to_dict())
        return
    if emit is not None:
        from tailora.emit import emit as write

        print(write(made, emit, task_type=task_type, model=model), end="")
        return
    _show(made)


def _check_emit(emit: str | None, task_type: str | None, *, json: bool) -> None:
    """Refuse what cannot be emitted before a model is read."""
    if emit is None:
        if task_type is not None:
            raise UserError(f"--task-type {task_type} is for --emit; add --emit peft, or leave it out")
        return
    from tailora.emit import EMITTERS

    EMITTERS.entry(emit)
    if json:
        raise UserError(f"--emit {emit} and --json both decide what is printed; give one of them")


def _load(saved: Path, given: dict[str, Any]) -> Any:
    """Return a saved plan, which leaves nothing to decide."""
    from tailora.plans import Plan

    extra = [name.replace("_", "-") for name, value in given.items() if value not in (None, False)]
    if extra:
        raise UserError(
            f"--from {saved} is a plan already made, which --{extra[0]} would change; leave one of them out"
        )
    return Plan.load(saved)


def _source(profile: Path | None, model: str | None, *, trust_remote_code: bool) -> Any:
    """Return what to plan from."""
    if (profile is None) == (model is None):
        raise UserError("give --profile (a folder made by 'tailora profile') or --model, one of the two")
    if profile is not None:
        from tailora.profiles import Profile

        return Profile.load(profile)
    from tailora.architecture import load_architecture

    return load_architecture(str(model), trust_remote_code=trust_remote_code)


def _show(made: Any) -> None:
    """Print a plan's summary and heat map."""
    from tailora.report.terminal import rank_map

    console = out()
    console.print(rank_map(made.to_dict()))
    ranks = [rank for rank in made.ranks.values() if rank]
    share = f", {made.total_params / made.model_params:.3%} of the model" if made.model_params else ""
    asked = made.provenance["asked_params"]
    over = "" if asked == made.budget_params else f" (the published rule; {asked:,} were asked)"
    chosen = "" if made.kept_params is None else f" (a mask keeps them of an adapter of {made.adapter_params:,})"
    console.print(
        f"{made.recipe.name}: {made.total_params:,} of {made.budget_params:,} parameters{over}{chosen}{share}; ranks "
        f"{min(ranks)} to {max(ranks)} on {len(ranks)} of {len(made.ranks)} targets; plan {made.hash[:12]}",
        soft_wrap=True,
    )


def _show_diff(first: Path, second: Path, *, json: bool) -> None:
    """Print the targets whose ranks differ between two plans."""
    from rich import box
    from rich.table import Table

    from tailora.plans import Plan

    one, two = Plan.load(first), Plan.load(second)
    changes = one.diff(two)
    if json:
        print_json(
            {
                "plans": [
                    {"file": str(f), "hash": p.hash, "total_params": p.total_params}
                    for f, p in ((first, one), (second, two))
                ],
                "changes": [{"target": name, "ranks": [mine, theirs]} for name, mine, theirs in changes],
            }
        )
        return
    console = out()
    if not changes:
        console.print(f"no rank differs; {one.total_params:,} parameters both", soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("target", overflow="fold")
    for title in (one.recipe.name, two.recipe.name, "change"):
        table.add_column(title, justify="right")
    for name, mine, theirs in changes:
        table.add_row(name, str(mine), str(theirs), f"{theirs - mine:+d}")
    console.print(table)
    console.print(
        f"{len(changes)} targets differ; {one.total_params:,} against {two.total_params:,} parameters", soft_wrap=True
    )
