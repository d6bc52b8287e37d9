"""Conversion of tables in users' files to dataclasses, whose annotations define the allowed types, ranges and names.

One annotation defines a key, its type and its range: `rate: PositiveFloat = 0.05`. Ranges use the classes of
annotated-types. pydantic converts and checks the values; it is imported on first use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from bidsseg.errors import DataError
from bidsseg.reading import Kind

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema, ErrorDetails

Table = TypeVar("Table")

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
"""Shares and probabilities."""
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]
"""Decays, momenta and shares below 1."""

MOST = 3
"""Largest number of mistakes in one message."""
LONGEST = 60
"""Largest number of characters of a value in a message."""
EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "mapping_type": "a table",
    "model_type": "a table",
    "dataclass_type": "a table",
}
"""Expected kind of value by pydantic's error type."""
BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


@dataclass(frozen=True)
class Rule:
    """A condition on a value that a type and a range cannot express, for the annotation of a field.

    Attributes:
        allowed: the condition in words, after "must be".
        holds: returns whether a value meets the condition.
    """

    allowed: str
    holds: Callable[[Any], bool]

    def __get_pydantic_core_schema__(self, kind: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import PydanticCustomError, core_schema

        def check(value: Any) -> Any:
            if not self.holds(value):
                raise PydanticCustomError("rule", "must be {allowed}", {"allowed": self.allowed})
            return value

        return core_schema.no_info_after_validator_function(check, handler(kind))


def one_of(names: Iterable[str]) -> Rule:
    """Return the rule that a text is one of these names."""
    known = tuple(names)
    return Rule(f"{', '.join(known[:-1])} or {known[-1]}", lambda name: name in known)


def converted(
    kind: type[Table], values: Mapping[str, Any], where: Path | str, *, inside: str = "", error: Kind = DataError
) -> Table:
    """Return a dataclass from a table of TOML or JSON.

    Args:
        where: the file, for the message.
        inside: key path of the table in the file, empty for the whole file.
        error: class of the error for unknown and missing keys, values of another type or out of range, and values for
            which ``__post_init__`` raises a ValueError. Its message names the file, the keys and the allowed values.
    """
    from pydantic import ValidationError

    keys = keys_of(kind)
    if inner := [entry.name for entry in fields(kind) if entry.name in values and entry.name not in keys]:  # type: ignore[arg-type]
        raise error(f"{where}: unknown key '{inner[0]}': {suggestion(inner[0], keys)}")
    # Validated as JSON, where strict mode still accepts a list for a tuple.
    text = json.dumps(values, default=lambda value: {type(value).__name__: str(value)})
    try:
        return cast(Table, _adapter(cast(Hashable, kind)).validate_json(text))
    except ValidationError as failed:
        found = failed.errors(include_url=False)
        mistakes = list(dict.fromkeys(_in_words(kind, failure, inside) for failure in found))
        more = [f"and {len(mistakes) - MOST} more"] if len(mistakes) > MOST else []
        raise error(f"{where}: {'; '.join([*mistakes[:MOST], *more])}") from failed


def check_options(
    function: Callable[..., object], options: Mapping[str, Any], where: Path | str, *, inside: str, leave_out: str
) -> None:
    """Raise DataError if a function or class cannot be called with options of these names, types and ranges.

    Args:
        where, inside: see ``converted``.
        leave_out: name of the argument that is not an option.
    """
    converted(_options_of(function, leave_out), options, where, inside=inside)


def keys_of(kind: Any) -> list[str]:
    """Return the keys of a dataclass in a file: its fields, except those with ``compare=False``."""
    return [entry.name for entry in fields(kind) if entry.compare]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message: the known name nearest to an unknown one, or all known names."""
    choice = sorted(known)
    return nearest(name, choice) or f"known are {', '.join(choice)}"


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a question with the known name nearest to an unknown one; empty if none is near."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else ""


@cache
def _options_of(function: Callable[..., object], leave_out: str) -> type:
    """Return a dataclass whose fields are the arguments of a function, except one."""
    given = [entry for entry in signature(function, eval_str=True).parameters.values() if entry.name != leave_out]
    described = [
        (
            entry.name,
            entry.annotation,
            field(**({} if entry.default is Parameter.empty else {"default": entry.default})),
        )
        for entry in given
    ]
    return make_dataclass("Options", described)


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    # pydantic applies this config only to dataclasses inside another type, hence the union; no value is None here.
    return TypeAdapter(kind | None, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))  # type: ignore[operator]


def _in_words(kind: type, failure: ErrorDetails, inside: str) -> str:
    """Return a failure in words: the key with its path, its value, and what is allowed."""
    place, what, value = failure["loc"], failure["type"], failure["input"]
    if what == "unexpected_keyword_argument":
        return f"unknown key '{_path(inside, place)}': {suggestion(str(place[-1]), keys_of(_at(kind, place[:-1])))}"
    if what == "json_invalid":  # a lone surrogate, which JSON can hold but Unicode text cannot
        return f"a text is not valid Unicode ({failure['ctx']['error']})"
    if what == "missing" and isinstance(place[-1], str):
        return f"{_path(inside, place)} is missing"
    if what == "value_error":
        return f"{_path(inside, place)}: {failure['ctx']['error']}".removeprefix(": ")
    if what == "missing":
        place = place[:-1]
        allowed = f"must have {len(get_args(_at(kind, place)))} values"
    elif what == "too_long":
        allowed = f"must have {failure['ctx']['max_length']} values"
    elif what == "too_short":
        allowed = f"must have at least {failure['ctx']['min_length']}"
    elif what in BOUNDS:
        limit, words = BOUNDS[what]
        allowed = f"must be {words} {failure['ctx'][limit]:g}"
    elif what in EXPECTED:
        allowed = f"must be {EXPECTED[what]}"
    else:
        allowed = failure["msg"].replace("Input should", "must")
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"
    return f"{_path(inside, place)} = {shown}: {allowed}"


def _path(inside: str, place: Sequence[int | str]) -> str:
    """Return the key path of a place, such as ``sampling.shape[0]``."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in place if step != "[key]"]
    return f"{inside}{''.join(steps)}".removeprefix(".")


def _at(kind: Any, place: Sequence[int | str]) -> Any:
    """Return the dataclass at a place in a dataclass."""
    for step in place:
        found = get_type_hints(kind)[str(step)]
        inner = [part for part in get_args(found) if part is not NoneType and is_dataclass(part)]
        kind = inner[0] if inner else found
    return kind
