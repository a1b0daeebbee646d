"""Follow the console logs that guest processes write."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

READ_SIZE = 1 << 16


class LogFollower:
    """Reads what is added to a guest's log, over its rotation (NAME.log becomes NAME.log.1)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._at = 0
        self._partial = b""

    def lines(self, *, last: bool = False) -> list[str]:
        """Return the lines added since the last call; `last` adds what is there of an unfinished one."""
        data = self._partial + self._added()
        whole, newline, self._partial = data.rpartition(b"\n")
        if last and self._partial:
            whole, newline, self._partial = data, b"\n", b""
        # A Linux guest's serial console ends lines as a terminal wants them.
        return [line.removesuffix("\r") for line in whole.decode(errors="replace").split("\n")] if newline else []

    def _added(self) -> bytes:
        try:
            found = os.stat(self._path)
        except OSError:
            return self._rest()
        if self._file is not None and os.fstat(self._file).st_ino != found.st_ino:
            rest = self._rest()
            self.close()
            return rest + self._added()
        if found.st_size == self._at and self._file is not None:
            return b""
        if self._file is None:
            with contextlib.suppress(OSError):
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self._rest()

    def _rest(self) -> bytes:
        data = bytearray()
        while self._file is not None:
            chunk = os.pread(self._file, READ_SIZE, self._at)
            self._at += len(chunk)
            data += chunk
            if not chunk:
                break
        return bytes(data)

    def close(self) -> None:
        """Close the log."""
        if self._file is not None:
            os.close(self._file)
            self._file, self._at = None, 0
