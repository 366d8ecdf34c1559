"""Find a recipe by name or path and check it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tailora.allocation import ALLOCATORS
from tailora.errors import UserError, unknown_name
from tailora.initialisation import INITIALISATIONS
from tailora.placement import parse
from tailora.recipes.schema import Recipe
from tailora.validation import first_problem
from tailora.yaml_files import read_yaml

_LIBRARY = Path(__file__).parent / "library"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in _LIBRARY.glob("*.yaml"))


def list_recipes() -> list[Recipe]:
    """Return the shipped recipes, sorted by name."""
    return [load_recipe(name) for name in recipe_names()]


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """Read a recipe.

    Args:
        source: A shipped recipe's name, the path of a YAML file (ending in ``.yaml`` or ``.yml``), a mapping, or a
            recipe.

    Returns:
        The recipe, checked: its allocator and initialisation exist, its placement can be read.

    Raises:
        UserError: It cannot be read or a key or value is wrong.
        UnknownNameError: No shipped recipe has this name.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        name = source.get("name")
        return _checked(dict(source), f"recipe {name!r}" if isinstance(name, str) else "the given mapping")
    text = str(source)
    if text.endswith((".yaml", ".yml")):
        return _read(Path(text))
    if text not in recipe_names():
        raise unknown_name("recipe", text, recipe_names())
    return _shipped(text)


@functools.cache
def _shipped(name: str) -> Recipe:
    """Read a shipped recipe once."""
    return _read(_LIBRARY / f"{name}.yaml")


def _read(path: Path) -> Recipe:
    """Read and check one YAML file."""
    data = read_yaml(path, "recipe file", "allocation: {name: uniform}")
    data.setdefault("name", path.stem)
    return _checked(data, f"recipe file {str(path)!r}")


def _checked(data: dict[str, Any], place: str) -> Recipe:
    """Validate a recipe's data and what it refers to."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(first_problem(error, Recipe, place)) from None
    allocator = ALLOCATORS[recipe.allocation.name]
    for option in recipe.allocation.options:
        if option not in allocator.options:
            raise unknown_name(f"option of allocator {recipe.allocation.name!r} in {place}:", option, allocator.options)
    if recipe.allocation.faithful and allocator.faithful is None:
        raise UserError(
            f"allocator {recipe.allocation.name!r} in {place} has no published integer rule; set faithful to false"
        )
    INITIALISATIONS.entry(recipe.initialisation.name)  # refuses an unknown name
    parse(recipe.placement)
    return recipe
