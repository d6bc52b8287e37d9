"""Segmentation of brain MRI: a BIDS App that turns T1w scans into label maps, volumes and reports.

The functions below are those of ``bidsseg.api``, which is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bidsseg import errors
    from bidsseg.api import Result, compare, list_models, load_model, segment

__version__ = "0.26.0"
__all__ = ["segment", "load_model", "list_models", "compare", "Result", "errors", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bidsseg' has no attribute '{name}'")
    return import_module("bidsseg.errors") if name == "errors" else getattr(import_module("bidsseg.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
