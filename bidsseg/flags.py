"""How a flag of the command line is declared: once, on the field of the settings that holds its value.

The parser, the help text, the settings and the Boutiques descriptors are made from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Group:
    """A group of flags in the help text.

    Attributes:
        levels: levels for which most of its flags have a meaning, see ``Flag.levels``.
    """

    title: str
    levels: str


SCANS = Group("selection of scans", "participant longitudinal evaluate train")
OUTPUTS = Group("model and outputs", "participant")
RESOURCES = Group("speed and resources", "participant longitudinal train file")
CLUSTER = Group("cluster", "participant")
LABELS = Group("labels (levels evaluate and train)", "evaluate train")
COMPARISON = Group("comparison (level evaluate)", "evaluate")
TRAINING = Group("training (level train)", "train")
OTHER = Group("other", "")


@dataclass(frozen=True)
class Flag:
    """A flag of the command line.

    Attributes:
        usage: spellings and the name of the value, ``-w --work-dir DIR``. A flag with neither value nor choices is a
            switch.
        help: one line; ``%(default)s`` is the default.
        read: returns the value for a text; with ``several``, for the list of texts. Without it, the text is the value.
        several: whether the flag takes several texts.
        alone: the value if the flag is given without a text; None if it needs a text.
        levels: the levels for which the flag has a meaning, separated by spaces: ``participant`` (also for ``group``),
            ``longitudinal``, ``evaluate``, ``train``, and ``file`` for that command. By default, those of the group.
    """

    usage: str
    group: Group
    help: str
    default: Any = None
    read: Callable[[Any], Any] | None = None
    several: bool = False
    alone: Any = None
    choices: Sequence[str] | None = None
    levels: str | None = None

    @property
    def names(self) -> list[str]:
        """All spellings, as typed."""
        return [word for word in self.usage.split() if word.startswith("-")]

    @property
    def metavar(self) -> str | None:
        """The name of the value in the help text."""
        return next((word for word in self.usage.split() if not word.startswith("-")), None)

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return self.metavar is None and self.choices is None

    @property
    def description(self) -> str:
        """The help text with the default."""
        return self.help % {"default": self.default}

    def has_meaning(self, level: str) -> bool:
        """Return whether the flag has a meaning for a level, or for the command ``file``."""
        return level in (self.group.levels if self.levels is None else self.levels).split()


def flag(
    usage: str,
    group: Group,
    help: str,  # as argparse calls it
    *,
    default: Any,
    read: Callable[[Any], Any] | None = None,
    several: bool = False,
    alone: Any = None,
    choices: Sequence[str] | None = None,
    levels: str | None = None,
) -> Any:
    """Return a field of a dataclass whose value a flag gives."""
    declared = Flag(usage, group, help, default, read, several, alone, choices, levels)
    value: dict[str, Any] = {"default_factory": dict} if default == {} else {"default": default}
    return field(**value, metadata={"flag": declared})


def flags_of(settings: type) -> dict[str, Flag]:
    """Return the flags of a dataclass of settings, by field."""
    return {entry.name: entry.metadata["flag"] for entry in fields(settings) if "flag" in entry.metadata}
