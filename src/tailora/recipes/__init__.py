"""Recipes: YAML files of five slots, shipped in ``library`` or written by the user."""

from __future__ import annotations

from tailora.recipes.load import list_recipes, load_recipe, recipe_names
from tailora.recipes.schema import Adapter, Allocation, Recipe, Scaling

__all__ = ["Adapter", "Allocation", "Recipe", "Scaling", "list_recipes", "load_recipe", "recipe_names"]
