"""cpio archives as the kernel unpacks them: format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

What is in an archive depends on nothing but what was put in: owner 0, time 0, inodes counted from 1.
"""

from __future__ import annotations

import stat

HEADER = 110
"""bytes: "070701" and 13 numbers of 8 hex digits"""
ALIGN = 4


class Archive:
    """An archive being made. Paths are relative, without a leading slash; a directory comes before what is in it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._count = 0
        self._directories: set[str] = set()

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory, once: a second time does nothing."""
        if path not in self._directories:
            self._directories.add(path)
            self._add(path, stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file that holds `data`."""
        self._add(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link to `target`."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def node(self, path: str, mode: int, major: int, minor: int) -> None:
        """Add a device; `mode` with its kind, such as S_IFCHR | 0o600."""
        self._add(path, mode, device=(major, minor))

    def finish(self) -> bytes:
        """Return the whole archive, a multiple of four bytes long."""
        self._count = -1
        self._add("TRAILER!!!", 0)
        return b"".join(self._parts)

    def _add(self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} is no path inside an archive")
        self._count += 1
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = (self._count, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        self._parts += [_padded(header + name), _padded(data)]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGN)
