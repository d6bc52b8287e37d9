"""The command ``recipe``: print a complete recipe, or check the file of one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bidsseg.app.parser import recipe_parser
from bidsseg.app.terminal import write_line


def recipe_command(words: Sequence[str]) -> int:
    """Do what the words after ``recipe`` ask for.

    Raises:
        DataError: what is wrong with the recipe.
        UsageError: the words are not a command, or the recipe mirrors regions without a partner.
    """
    given = recipe_parser().parse_args(words)
    from bidsseg.learning.recipe import load_recipe
    from bidsseg.learning.recipe_text import recipe_text
    from bidsseg.learning.training_setup import check_whole

    if given.action == "show":
        write_line(recipe_text(load_recipe(given.recipe, small=given.small)).removesuffix("\n"), sys.stdout)
        return 0
    for line in check_whole(given.recipe, small=given.small):
        write_line(line, sys.stdout)
    return 0
