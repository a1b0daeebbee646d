"""Linux kernel images: a vmlinux, or a bzImage unpacked once into a cache, so that all guests map one file."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hostd.memory import Segment
from hostd.memory.layout import PAGE


@dataclass(frozen=True)
class Kernel:
    """A checked kernel: the vmlinux file that guests map, and where it is entered.

    `segments` are its PT_LOADs in physical address order (`gpa` is the physical address), `entry64` the physical
    address of the ELF entry (64-bit protocol), `pvh` that of the PVH entry or None, `version` its release
    ("6.1.0-50-cloud-amd64", or "" where none is found), `setup_header` the bzImage's setup header (boot protocol, from
    offset 0x1F1 on) or b"", `code` the physical addresses [start, end) of the code in the first executable segment
    ((0, 0) where the file doesn't say). `source` is the file that the user named.
    """

    path: str
    source: str
    segments: tuple[Segment, ...]
    entry64: int
    pvh: int | None
    version: str
    setup_header: bytes = b""
    code: tuple[int, int] = (0, 0)

    @property
    def start(self) -> int:
        """The first page's address."""
        return self.segments[0].gpa // PAGE * PAGE

    @property
    def end(self) -> int:
        """The first address behind the last page."""
        return end_page(self.segments[-1])

    def plain(self) -> dict[str, Any]:
        """Return the kernel as plain values, for a message; `Kernel.of` takes them back."""
        return {
            "path": self.path,
            "source": self.source,
            "segments": [asdict(segment) for segment in self.segments],
            "entry64": self.entry64,
            "pvh": self.pvh,
            "version": self.version,
            "code": list(self.code),
            "setup_header": self.setup_header,
        }

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Kernel:
        segments = tuple(Segment(**segment) for segment in plain["segments"])
        return cls(**{**plain, "segments": segments, "code": tuple(plain["code"])})


def end_page(segment: Segment) -> int:
    """Return the first address behind the segment's last page."""
    return -(-(segment.gpa + segment.memory_size) // PAGE) * PAGE


def open_kernel(path: str | os.PathLike[str], cache: Path) -> Kernel:
    """Read and check the kernel at `path`; a bzImage is unpacked into the folder `cache`, once for its content.

    What was found is kept in `cache` too, by the file's identity and time, so that a kernel is read once and not by
    every start. Raises ImageError (one sentence) and OSError (a file cannot be read or the cache not written).
    """
    # Imported here: a guest's process takes a kernel that is already open.
    from hostd.boot.linux.unpacking import opened

    return opened(Path(path), cache)
