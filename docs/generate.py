"""Pages of the reference that are generated from the program when the site is built.

A hook of MkDocs. A recipe key, an output or a public object of the Python reference without a description is an error,
so that the build fails. Recipes are read as source text (griffe), so that the build does not need torch.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from key_types import Types  # noqa: E402

from bidsseg.app.parser import dataset_parser, file_parser, recipe_parser  # noqa: E402
from bidsseg.errors import EXIT_CODES  # noqa: E402
from bidsseg.models.card import Card, shipped  # noqa: E402


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, each behind the hand-written page of the same name."""
    check_docstrings(documented_modules())
    check_findings()
    generated = {
        "reference/command-line.md": command_line(),
        "reference/recipes.md": recipe_keys(),
        "reference/models.md": model_cards(),
        "reference/outputs.md": output_patterns(),
    }
    for name, text in generated.items():
        written = files.get_file_from_path(name)
        if written is None:
            raise PluginError(f"docs/{name} is missing")
        whole = f"{written.content_string.rstrip()}\n\n{text}"
        files.remove(written)
        files.append(File.generated(config, name, content=whole))
    return files


# -- command line ------------------------------------------------------------------------------------------------------


def command_line() -> str:
    """Return every flag of all commands by group, and the exit codes."""
    lines = [*flag_tables(dataset_parser()), "## One file: `bidsseg file`", ""]
    lines += flag_tables(file_parser(), "###")
    lines += ["## Recipes: `bidsseg recipe`", "", *flag_tables(recipe_parser(), "###")]
    lines += ["## Exit codes", "", *row("Code", "Meaning"), *row("---", "---")]
    lines += [line for code, text in EXIT_CODES.items() for line in row(str(code), text)]
    return "\n".join(lines) + "\n"


def flag_tables(parser: argparse.ArgumentParser, heading: str = "##") -> list[str]:
    """Return a table of arguments and flags for each group of a parser."""
    lines = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            lines += [f"{heading} {(group.title or '').capitalize()}", ""]
            lines += [*row("Argument", "Meaning"), *row("---", "---")]
            lines += [line for action in actions for line in row(flags(action), meaning(action))]
            lines.append("")
    return lines


def flags(action: argparse.Action) -> str:
    """Return the spellings of a flag and its value."""
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
    several = " …" if action.nargs in ("+", "*") and action.option_strings else ""
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    shown = f"`{value}{several}`" if value else ""
    return " ".join(part for part in (names, shown) if part)


def meaning(action: argparse.Action) -> str:
    """Return the help text of a flag; PluginError without one."""
    if not action.help:
        raise PluginError(f"{action.dest}: the flag has no help text")
    return action.help % {"default": action.default, "prog": "bidsseg"}


# -- recipes -----------------------------------------------------------------------------------------------------------


def recipe_keys() -> str:
    """Return the keys of every TOML table of a recipe with type and range, default and description."""
    lines = ["## Keys", ""]
    recipe = griffe.load("bidsseg.learning.recipe", search_paths=[ROOT], docstring_parser="google")
    types = Types(ROOT)
    top = types.member(recipe, "Recipe")
    for table, kind in [("", top), *tables_of(top, types)]:
        described = attributes(kind)
        lines += [f"### {f'`[{table}]`' if table else 'Top level'}", "", first_paragraph(kind), ""]
        lines += [*row("Key", "Value", "Default", "Meaning"), *row("---", "---", "---", "---")]
        for field in fields_of(kind):
            if field.name not in described:
                raise PluginError(f"{kind.path}: the docstring does not describe the key {field.name}")
            allowed = types.words(str(field.annotation), kind.module)
            lines += row(f"`{field.name}`", allowed, default(field), described.pop(field.name))
        if described:
            raise PluginError(f"{kind.path}: the docstring describes {', '.join(described)}, which is no key")
        lines.append("")
    return "\n".join(lines)


def tables_of(kind: Any, types: Types) -> Iterator[tuple[str, Any]]:
    """Yield the names and classes of the TOML tables of a recipe: its fields that are dataclasses."""
    for field in fields_of(kind):
        name = str(field.annotation).removesuffix(" | None")
        if name.isidentifier() and name in kind.module.members:
            found = types.member(kind.module, name)
            if found.is_class:
                yield field.name, found


def fields_of(kind: Any) -> Iterator[Any]:
    """Yield the annotated attributes of a dataclass."""
    for member in kind.members.values():
        if member.is_attribute and member.annotation is not None and "property" not in member.labels:
            yield member


def attributes(kind: Any) -> dict[str, str]:
    """Return the descriptions under Attributes in a docstring; one entry may describe several names."""
    found: dict[str, str] = {}
    section = str(kind.docstring.value).partition("Attributes:\n")[2]
    for entry in re.split(r"\n(?=    \w)", f"\n{section}"):
        names, colon, text = entry.strip().partition(":")
        if colon:
            found |= {name.strip(): prose(text) for name in names.split(",")}
    return found


def default(field: Any) -> str:
    """Return the default of a key as the source has it."""
    if field.value is None:
        return "required"
    value = str(field.value)
    if value.startswith("field("):
        made = value.removeprefix("field(default_factory=").removesuffix(")").removeprefix("lambda: ")
        return f"see `[{field.name}]`" if made == field.name.capitalize() else f"`{made}`"
    return f"`{value}`"


def first_paragraph(kind: Any) -> str:
    """Return the first paragraph of a docstring."""
    return prose(str(kind.docstring.value).split("\n\n")[0])


def prose(text: str) -> str:
    """Return docstring text as Markdown on one line, with its first letter capitalised."""
    line = " ".join(text.split()).replace("``", "`")
    return line[:1].upper() + line[1:]


# -- models and outputs ------------------------------------------------------------------------------------------------


def model_cards() -> str:
    """Return a section for each shipped model, from its card."""
    return "\n".join(line for card in shipped() for line in model_card(card))


def model_card(card: Card) -> Iterator[str]:
    """Yield the lines about one model."""
    if not (card.title and card.description and card.citation):
        raise PluginError(f"model {card.name}: the card lacks title, description or citation")
    dice = ", ".join(f"{head} {value:.3f}" for head, value in card.dice.items())
    yield from (f"## {card.name}", "", f"{card.title}. {card.description}", "")
    yield from (*row("On the card", ""), *row("---", "---"))
    yield from row("Inputs", card.needs)
    yield from row("Heads", ", ".join(card.heads))
    yield from row("Network", f"`{card.network['name']}`, {card.spacing_mm:g} mm, {card.size_mb:.0f} MB")
    yield from row("Brain found by", f"`{card.locator}`" if card.locator else "itself")
    yield from row("Mean Dice on held-out participants", dice or "not on the card")
    yield from row("Training data", "; ".join(card.data) or "not on the card")
    yield from row("Licence of the weights", card.licence)
    yield from row("Cite", "; ".join(card.citation))
    yield ""


def output_patterns() -> str:
    """Return the names and descriptions of outputs.toml."""
    outputs = tomllib.loads((ROOT / "bidsseg" / "bids" / "outputs.toml").read_text(encoding="utf-8"))
    titles = {
        "scan": "Of a scan",
        "session": "Of a session, compared with the others",
        "series": "Of the sessions of a participant",
        "group": "Of the cohort",
        "root": "Of the dataset",
    }
    lines = ["## Name patterns", "", "The program reads these patterns from `bidsseg/bids/outputs.toml`.", ""]
    for table, entries in outputs.items():
        lines += [f"### {titles[table]}", "", *row("Pattern", "File"), *row("---", "---")]
        for key, entry in entries.items():
            if "description" not in entry:
                raise PluginError(f"bidsseg/bids/outputs.toml: {key} has no description")
            lines += row(f"`{entry['name']}`", entry["description"])
        lines.append("")
    return "\n".join(lines)


def check_findings() -> None:
    """Raise PluginError for findings of the program that the page of the outputs does not list."""
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "bidsseg").rglob("*.py")))
    page = (ROOT / "docs" / "reference" / "outputs.md").read_text(encoding="utf-8")
    codes = sorted(set(re.findall(r'Finding\(\s*"([A-Z_]+)"', source)))
    if missing := [code for code in codes if f"`{code}`" not in page]:
        raise PluginError(f"docs/reference/outputs.md does not list the findings {', '.join(missing)}")


def row(*cells: str) -> list[str]:
    """Return the row of a table, as a list of one line. A bar is escaped, except in code, where Markdown keeps it."""
    return ["| " + " | ".join(re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or "\\|", cell) for cell in cells) + " |"]


# -- Python ------------------------------------------------------------------------------------------------------------


def documented_modules() -> list[str]:
    """Return the names that the Python reference documents."""
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    return re.findall(r"^::: (\S+)", text, re.MULTILINE)


def check_docstrings(names: Iterable[str]) -> None:
    """Raise PluginError for public classes, functions and properties without a docstring."""
    missing = [path for name in names for path in undocumented(griffe.load(name, search_paths=[ROOT]))]
    if missing:
        raise PluginError(f"no docstring: {', '.join(missing)}")


def undocumented(item: Any) -> Iterator[str]:
    """Yield the paths of an object and its public members that have no docstring."""
    item = item.final_target if item.is_alias else item
    if item.docstring is None:
        yield item.path
    for name, member in item.members.items():
        described = member.is_alias or name.startswith("_") or (member.is_attribute and "property" not in member.labels)
        if not described:
            yield from undocumented(member)
