"""A report that remembers."""

from dataclasses import dataclass, field

from bidsseg.settings import Report


@dataclass
class Told(Report):
    """Remembers what it is told."""

    said: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def say(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)
