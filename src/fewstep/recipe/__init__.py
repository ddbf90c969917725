"""Recipes: YAML and ``key=value`` to typed settings. Strict, and every error of a file is told at once, with its path.

Nothing in here imports torch: the command line must answer at once.
"""

from fewstep.recipe.reading import load_recipe, parse_yaml, shipped_recipes, validated
from fewstep.recipe.recipe import FORMAT, Recipe, Trainer, resolved

__all__ = ["FORMAT", "Recipe", "Trainer", "load_recipe", "parse_yaml", "resolved", "shipped_recipes", "validated"]
