"""Pages are rendered templates with embedded style and script, so that they can be moved with the output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bidsseg import __version__
from bidsseg.files import write_text_atomic
from bidsseg.reading import NOT_AVAILABLE

TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Write a page, whole or not at all; it contains no time, so that equal results give equal pages."""
    text = _environment().get_template(template).render(version=__version__, **content)
    write_text_atomic(path, text)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["millilitres"] = lambda mm3: "" if mm3 is None else _number(mm3 / 1000, 2)
    environment.filters["decimals"] = lambda value, digits=2: "" if value is None else _number(value, digits)
    environment.filters["known"] = lambda value, digits=2: f"{value:z.{digits}f}" if math.isfinite(value) else ""
    return environment


def _number(value: float, digits: int) -> str:
    return NOT_AVAILABLE if math.isnan(value) else f"{value:.{digits}f}"
