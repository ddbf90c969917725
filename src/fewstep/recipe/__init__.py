"""Recipes: YAML files and ``key=value`` overrides, read into typed settings. All mistakes in a recipe are reported together, by key.

Nothing in this package imports torch, so that the command line starts quickly.
"""

from fewstep.recipe.reading import load_recipe, parse_yaml, shipped_recipes, validated
from fewstep.recipe.recipe import FORMAT, Recipe, Trainer, resolved

__all__ = ["FORMAT", "Recipe", "Trainer", "load_recipe", "parse_yaml", "resolved", "shipped_recipes", "validated"]
