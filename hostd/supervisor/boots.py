"""What a guest boots: what its process is told of it, and the files that it maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hostd.boot.elf import Image


@dataclass(frozen=True)
class Boot:
    """What one group of guests boots.

    `description` is the "image" of a guest's spec, as plain values. `files` are opened for each guest's process in this
    order, the kernel or program first, each with its access ("ro" or "rw").
    """

    description: Mapping[str, Any]
    files: tuple[tuple[str, str], ...]

    @property
    def path(self) -> str:
        """The file that holds the program or kernel."""
        return self.files[0][0]

    def plain(self) -> dict[str, Any]:
        """Return it as plain values, for a file; `Boot.of` takes them back."""
        return {"description": self.description, "files": self.files}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Boot:
        return cls(plain["description"], tuple((path, access) for path, access in plain["files"]))


def unikernel(image: Image) -> Boot:
    """Return what a unikernel guest boots: its program."""
    return Boot(image.describe(), ((image.path, "ro"),))
