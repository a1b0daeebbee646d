"""What can go wrong between hostd and KVM."""

from __future__ import annotations

import errno as errors
import os

# Arguments that are counted; the others are addresses and bits.
COUNTS = frozenset({"slot", "index", "vcpu", "fd", "length", "entries", "count", "room", "gsi", "level", "type"})


class KvmError(OSError):
    """An ioctl of KVM failed: its `ioctl` name, `errno` and the `arguments` that matter."""

    def __init__(self, ioctl: str, errno: int, arguments: dict[str, int | str] | None = None, hint: str = "") -> None:
        super().__init__(errno, os.strerror(errno))
        self.ioctl = ioctl
        self.arguments = arguments or {}
        self.hint = hint

    def __str__(self) -> str:
        values = ", ".join(
            f"{name}={value:#x}" if isinstance(value, int) and name not in COUNTS else f"{name}={value}"
            for name, value in self.arguments.items()
        )
        name = errors.errorcode.get(self.errno or 0, str(self.errno))
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.ioctl}({values}) failed: {self.strerror} ({name}){hint}"


class NoKvmError(OSError):
    """There is no KVM that this process may use; the text says what to do."""

    def __str__(self) -> str:
        return str(self.strerror)
