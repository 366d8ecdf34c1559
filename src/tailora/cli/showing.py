"""Commands that only show: a model's targets, the recipes, the environment."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tailora.cli.output import out, print_json


def model_place(model: str | None) -> str | None:
    """Return what a model on the command line stands for; a callback of typer.

    Args:
        model: What the user wrote, if anything; ``package:NAME/FOLDER`` is a folder inside an installed package.

    Returns:
        The same, or the folder inside the package.
    """
    from tailora.config_files import find_model

    return None if model is None else find_model(model)


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[
    str, typer.Argument(help="Hub id, model folder, config.json or package:NAME/FOLDER.", callback=model_place)
]
TrustCode = Annotated[bool, typer.Option("--trust-remote-code", help="Allow code of the model's repository to run.")]


def inspect(
    model: Model,
    placement: Annotated[str, typer.Option("--placement", "-p", help="Show only what this rule selects.")] = "",
    all_rows: Annotated[bool, typer.Option("--all", help="One row per matrix instead of one per kind.")] = False,
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
    trust_remote_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Show a model's targets: role, depth, shape and cost per rank (weights are not read)."""
    from tailora.architecture import load_architecture
    from tailora.placement import select
    from tailora.targets import find_targets

    network = load_architecture(model, revision=revision, trust_remote_code=trust_remote_code)
    targets = find_targets(network)
    if placement:
        targets = select(targets, placement)
    model_params = sum(parameter.numel() for parameter in network.parameters())
    if json:
        print_json(
            {
                "model_class": type(network).__name__,
                "model_params": model_params,
                "cost_per_rank": sum(target.cost(1) for target in targets),
                "targets": [{**target.to_dict(), "cost_per_rank": target.cost(1)} for target in targets],
            }
        )
        return
    console = out()
    console.print(_target_table(targets, all_rows=all_rows))
    selected = f"placement {placement!r}" if placement else "all targets"
    console.print(
        f"{type(network).__name__}: {model_params:,} parameters, {len(targets)} targets ({selected}), "
        f"{sum(target.cost(1) for target in targets):,} adapter parameters per rank",
        soft_wrap=True,
    )


def _target_table(targets: list[Any], *, all_rows: bool) -> Any:
    """Build the table of ``inspect``."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = ("target", "role", "depth") if all_rows else ("targets like", "role", "depths", "count")
    for name in names:
        table.add_column(name, overflow="fold", justify="right" if name == "count" else "left")
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("per rank", justify="right", no_wrap=True)
    if all_rows:
        for t in targets:
            depth = "-" if t.depth is None else str(t.depth)
            table.add_row(t.name, _role(t), depth, _shape(t), f"{t.cost(1):,}")
        return table
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for target in targets:
        key = (target.stack, target.role, target.cross_attention, target.name.rpartition(".")[2], _shape(target))
        groups.setdefault(key, []).append(target)
    for members in groups.values():
        first = members[0]
        depths = sorted({t.depth for t in members if t.depth is not None})
        span = "-" if not depths else str(depths[0]) if len(depths) == 1 else f"{depths[0]}-{depths[-1]}"
        cost = sum(t.cost(1) for t in members)
        # The last two parts tell matrices of one kind apart; the layer's number would only be the first of many.
        short = ".".join(first.name.split(".")[-2:])
        table.add_row(short, _role(first), span, str(len(members)), _shape(first), f"{cost:,}")
    return table


def _role(target: Any) -> str:
    """Return the role with its tower."""
    cross = " (cross)" if target.cross_attention else ""
    return f"{target.stack}: {target.role}{cross}" if target.stack else f"{target.role}{cross}"


def _shape(target: Any) -> str:
    """Return ``out x in``, with the number of experts."""
    experts = f"{target.experts} x " if target.experts > 1 else ""
    return f"{experts}{target.shape[0]} x {target.shape[1]}"


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show one recipe in full.")] = None, json: Json = False
) -> None:
    """List the recipes with their citations."""
    from rich import box
    from rich.table import Table

    from tailora.recipes import list_recipes, load_recipe

    listed = [load_recipe(name)] if name else list_recipes()
    if json:
        print_json([recipe.to_dict() for recipe in listed])
        return
    if name:
        import yaml

        print(yaml.safe_dump(listed[0].to_dict(), sort_keys=False, allow_unicode=True), end="")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("recipe", "what it is", "citation"):
        table.add_column(column, overflow="fold", no_wrap=column == "recipe")
    for recipe in listed:
        needs = f" [needs {', '.join(recipe.signals)}]" if recipe.signals else ""
        table.add_row(recipe.name, recipe.title + needs.replace("[", "\\["), recipe.citation)
    out().print(table)


def environment(json: Json = False) -> None:
    """Show the versions and the machine, for bug reports."""
    from tailora.environment import environment as read_environment

    found = read_environment()
    if json:
        print_json(found)
        return
    for key, value in found.items():
        if isinstance(value, dict):
            for inner, detail in value.items():
                print(f"{key}.{inner}: {detail}")
        else:
            print(f"{key}: {', '.join(map(str, value)) or 'none' if isinstance(value, list) else value}")
