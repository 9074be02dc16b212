"""Recipes of ``textenv rlhf``: systems of the line that led to ChatGPT, as settings and data, one a file.

A file ``my_recipe.py`` in this folder that defines the class ``MyRecipe``, a ``textenv.recipes.base.Recipe``, is what
``textenv rlhf --recipe my_recipe`` runs. Nothing else has to be edited.
"""

from __future__ import annotations

from textenv import plugins
from textenv.recipes.base import Recipe

__all__ = ["find", "names"]


def names() -> tuple[str, ...]:
    """Return the names of the built-in recipes, sorted."""
    return tuple(plugins.built_in(__name__))


def find(name: str) -> Recipe:
    """Return the recipe of a name, or of an import path ``package.module:Class``.

    Raises:
        TextEnvError: There is none.
    """
    made: Recipe = plugins.find("recipe", __name__, name)()
    return made
