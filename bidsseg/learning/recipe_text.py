"""A complete recipe as TOML, with every key, its value and what it means."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_type_hints

from bidsseg.learning.recipe import Recipe
from bidsseg.models.library import NETWORKS

WIDTH = 110
"""Largest width of a comment."""


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as TOML that ``load_recipe`` reads as the same recipe.

    Keys without a value, such as a table that the recipe does not use, are comments.
    """
    described, hints = descriptions(Recipe), get_type_hints(Recipe)
    tables = {entry.name: kind for entry in fields(Recipe) if (kind := _table_kind(hints[entry.name]))}
    lines: list[str] = []
    for entry in fields(Recipe):
        if entry.name not in tables and entry.name != "network":
            lines += _key(entry.name, getattr(recipe, entry.name), described.get(entry.name, ""))
    lines += ["", *_comment(described["network"]), "[network]", *_network(recipe.network)]
    for name, kind in tables.items():
        lines += ["", *_comment(described[name]), *_table(name, kind, getattr(recipe, name))]
    return "\n".join(lines) + "\n"


def descriptions(kind: type) -> dict[str, str]:
    """Return what a docstring says about each attribute or argument; an entry may be about several."""
    text = inspect.cleandoc(kind.__doc__ or "")
    section = re.split(r"^(?:Attributes|Args):\n", text, maxsplit=1, flags=re.MULTILINE)[1:]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + section[0].split("\n\n")[0]) if section else ():
        names, colon, meaning = entry.strip().partition(":")
        if colon:
            found |= {name.strip(): " ".join(meaning.split()).replace("``", "") for name in names.split(",")}
    return found


def toml_value(value: Any) -> str:
    """Return a value as TOML.

    >>> toml_value({"FAST": 1.0, "a.tsv": 0.5}), toml_value(("T1w", True)), toml_value(1e-05)
    ('{ FAST = 1.0, "a.tsv" = 0.5 }', '["T1w", true]', '1e-05')
    """
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_key(key)} = {toml_value(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _table_kind(hint: Any) -> type | None:
    """Return the dataclass of a field that is a table, also of one that may be omitted."""
    kinds = [kind for kind in (hint, *get_args(hint)) if kind is not NoneType and is_dataclass(kind)]
    return kinds[0] if kinds and isinstance(kinds[0], type) else None


def _table(name: str, kind: type, values: Any) -> Iterator[str]:
    """Yield a table; all of it as comments if the recipe does not use it."""
    described = descriptions(kind)
    mark = "" if values is not None else "# "
    yield f"{mark}[{name}]"
    for entry in fields(kind):
        if entry.compare:
            value = getattr(values, entry.name) if values is not None else _default(entry)
            lines = _key(entry.name, value, described.get(entry.name, ""))
            yield from (
                lines if values is not None else (line if line.startswith("#") else f"# {line}" for line in lines)
            )


def _default(entry: Field[Any]) -> Any:
    """Return the default of a field; None if it is required."""
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return None if entry.default is MISSING else entry.default


def _network(network: Mapping[str, Any]) -> Iterator[str]:
    """Yield the name and all options of a network."""
    kind = NETWORKS[network["name"]]
    described = descriptions(kind) if isinstance(kind, type) else {}
    yield from _key("name", network["name"], f"one of {', '.join(NETWORKS)}")
    for option in inspect.signature(kind).parameters.values():
        if option.name in network or option.name not in ("outputs", "images"):
            value = network.get(option.name, option.default)
            yield from _key(
                option.name, None if value is inspect.Parameter.empty else value, described.get(option.name, "")
            )


def _key(name: str, value: Any, meaning: str) -> list[str]:
    """Return the lines of a key: its meaning as a comment, then its value; a key without a value is a comment."""
    line = f"# {_toml_key(name)} =" if value is None else f"{_toml_key(name)} = {toml_value(value)}"
    return [*_comment(meaning), line]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH)]
