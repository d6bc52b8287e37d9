"""Description of the type and range of a recipe's keys, from the annotations of their fields in the source text."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

PLAIN = {"int": "integer", "float": "number", "bool": "true or false", "str": "text", "Any": "any value"}
SEVERAL = {"integer": "integers", "number": "numbers", "text": "texts", "table": "tables", "any value": "any values"}
BOUNDS = {"Gt": "> ", "Ge": "≥ ", "Lt": "< ", "Le": "≤ "}


class Types:
    """The types and names in the modules under a folder.

    Attributes:
        root: folder of the packages.
    """

    def __init__(self, root: Any) -> None:
        self.root = root

    def member(self, module: Any, name: str) -> Any:
        """Return the member of a module with this name, following imports."""
        found = module.members[name]
        if not found.is_alias:
            return found
        home, _, own = found.target_path.rpartition(".")
        return self.member(griffe.load(home, search_paths=[self.root], docstring_parser="google"), own)

    def words(self, annotation: str, module: Any) -> str:
        """Return the type and the range of a field: ``number, 0 to 1``."""
        kind, limits = self._read(ast.parse(annotation, mode="eval").body, module)
        limits = re.sub(r"≥ (\S+) and ≤ (\S+)", r"\1 to \2", limits)
        return f"{kind}, {limits}" if limits else kind

    def _read(self, node: ast.expr, module: Any) -> tuple[str, str]:
        match node:
            case ast.Name(id=name) if name in PLAIN:
                return PLAIN[name], ""
            case ast.Name(id=name):
                found = self.member(module, name)
                return ("table", "") if found.is_class else self._read(_expression(found), found.module)
            case ast.BinOp(left=kind):  # None stands for an omitted key
                return self._read(kind, module)
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, *marks])):
                plain, limits = self._read(kind, module)
                more = [self._limit(mark, module) for mark in marks]
                return plain, " and ".join(part for part in (limits, *more) if part)
            case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
                names = values.elts if isinstance(values, ast.Tuple) else [values]
                return " or ".join(ast.unparse(name).replace("'", '"') for name in names), ""
            case ast.Subscript(value=ast.Name(id="Sequence" | "tuple" | "Mapping" as outer), slice=inner):
                return self._several(outer, inner.elts if isinstance(inner, ast.Tuple) else [inner], module)
        raise ValueError(f"docs/key_types.py knows no type {ast.unparse(node)}")

    def _several(self, outer: str, parts: list[ast.expr], module: Any) -> tuple[str, str]:
        kind, limits = self._read(parts[1 if outer == "Mapping" else 0], module)
        each = f"each {limits}" if limits else ""
        if outer == "Mapping":
            return f"table of {SEVERAL[kind]}", each
        open_end = outer == "Sequence" or ast.unparse(parts[-1]) == "..."
        return f"list of {SEVERAL[kind]}" if open_end else f"{len(parts)} {SEVERAL[kind]}", each

    def _limit(self, mark: ast.expr, module: Any) -> str:
        match mark:
            case ast.Name(id=name):
                found = self.member(module, name)
                return self._limit(_expression(found), found.module)
            case ast.Call(func=ast.Name(id="Len"), args=[least]):
                return f"at least {ast.unparse(least)} of them"
            case ast.Call(func=ast.Name(id="one_of"), args=[ast.Name(id=name)]):
                known = _expression(self.member(module, name))
                names = known.keys if isinstance(known, ast.Dict) else getattr(known, "elts", [])
                return " or ".join(ast.unparse(entry).replace("'", '"') for entry in names if entry)
            case ast.Call(func=ast.Name(id="Rule"), args=[ast.Constant(value=allowed), *_]):
                return str(allowed)
            case ast.Call(func=ast.Name(id=name), args=[bound]) if name in BOUNDS:
                return BOUNDS[name] + ast.unparse(bound)
        raise ValueError(f"docs/key_types.py knows no rule {ast.unparse(mark)}")


def _expression(found: Any) -> ast.expr:
    return ast.parse(str(found.value), mode="eval").body
