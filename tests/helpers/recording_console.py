"""A report that records the messages of a level."""

from dataclasses import dataclass, field

from bidsseg.settings import Report


@dataclass
class RecordingConsole(Report):
    """A report that keeps results and warnings for assertions."""

    messages: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def say(self, message: str) -> None:
        self.messages.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
