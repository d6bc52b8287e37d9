"""Arrays in files, each written once, checked when it is read, and mapped into memory instead of copied there."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bidsseg.files import held, replacing

POLL_S = 0.2
"""Interval of looking whether another process has finished a file."""


@dataclass(frozen=True)
class Content:
    """The content of a file.

    Attributes:
        arrays: arrays by name; those of a file are mapped, so that the system drops their pages when it needs memory.
        about: further values, as in JSON.
    """

    arrays: Mapping[str, Tensor]
    about: Mapping[str, Any]


class Store:
    """A folder of arrays, one file for each key. Several processes and threads may use it at once.

    A file is complete or absent. A damaged one, whose size, header or checksum is wrong, is made again.

    Args:
        warn: receives a line about each damaged file.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self.warn = folder, warn
        self.intact: set[str] = set()

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        return self.folder / f"{key}.safetensors"

    def about(self, key: str) -> Mapping[str, Any] | None:
        """Return the values of a key from its header; None if the file is missing or damaged, then removed."""
        found = self._read(key, whole=False)
        return None if found is None else found.about

    def make(self, key: str, make: Callable[[], Content]) -> None:
        """Write the file of a key unless it is there. If another process is writing it, wait for that process.

        Raises:
            OutputNotWritable: the folder cannot be written to.
            IOFailure: the disk is full.
        """
        while not self.path(key).exists():
            with held(self.folder / f".{key}.lock") as mine:
                if mine and not self.path(key).exists():
                    self._write(key, make())
            if not mine:
                time.sleep(POLL_S)

    def read(self, key: str, make: Callable[[], Content]) -> Content:
        """Return the content of a key; its checksum is compared once. A missing or damaged file is made again."""
        with torch.device("cpu"):  # samples are drawn with another default
            while (found := self._read(key, whole=key not in self.intact)) is None:
                self.make(key, make)
        self.intact.add(key)
        return found

    def _read(self, key: str, *, whole: bool) -> Content | None:
        path = self.path(key)
        try:
            with safe_open(path, "pt") as stored:  # compares the size with the header
                text = stored.metadata()["about"]
                arrays = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
                if not whole or checksum(text, arrays) == stored.metadata()["crc32"]:
                    return Content(arrays, json.loads(text))
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, TypeError, ValueError):
            pass
        self.warn(f"{path}: damaged, made again")
        with suppress(FileNotFoundError):
            path.unlink()
        return None

    def _write(self, key: str, content: Content) -> None:
        arrays = {name: content.arrays[name].contiguous() for name in sorted(content.arrays)}
        text = json.dumps(content.about)
        with replacing(self.path(key)) as stream:
            stream.write(save(arrays, {"about": text, "crc32": checksum(text, arrays)}))


def checksum(text: str, arrays: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of a text and of contiguous arrays, in their order."""
    found = zlib.crc32(text.encode())
    for array in arrays.values():
        found = zlib.crc32(array.numpy().data, found)
    return f"{found:08x}"
