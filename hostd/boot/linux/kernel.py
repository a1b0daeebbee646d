"""Linux kernel images: a vmlinux, or a bzImage unpacked once into a cache, so that all guests map one file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostd.memory import Segment


@dataclass(frozen=True)
class Kernel:
    """A checked kernel: the vmlinux file that guests map, and where it is entered.

    `segments` are its PT_LOADs in physical address order (`gpa` is the physical address), `entry64` the physical
    address of the ELF entry (64-bit protocol), `pvh` that of the PVH entry or None, `version` its banner's version
    ("6.1.0-50-cloud-amd64", or "" where none is found), `setup_header` the bzImage's setup header (boot protocol, from
    offset 0x1F1 on) or b"". `source` is the file that the user named.
    """

    path: str
    source: str
    segments: tuple[Segment, ...]
    entry64: int
    pvh: int | None
    version: str
    setup_header: bytes

    @property
    def start(self) -> int:
        """The first page's address."""
        raise NotImplementedError

    @property
    def end(self) -> int:
        """The first address behind the last page."""
        raise NotImplementedError

    def plain(self) -> dict[str, Any]:
        """Return the kernel as plain values, for a message; `Kernel.of` takes them back."""
        raise NotImplementedError

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Kernel:
        raise NotImplementedError


def open_kernel(path: str | os.PathLike[str], cache: Path) -> Kernel:
    """Read and check the kernel at `path`; a bzImage is unpacked into the folder `cache`, once for its content.

    Raises ImageError (one sentence) and OSError (a file cannot be read or the cache not written).
    """
    raise NotImplementedError
