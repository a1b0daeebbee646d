"""Say what went wrong in a guest: the exception, where it was, and what lies at the address it touched.

Exceptions: AMD64 Architecture Programmer's Manual, volume 2, section 8.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

PAGE_FAULT = 14
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
NAMES = {
    0: "divide error",
    1: "debug exception",
    3: "breakpoint",
    4: "overflow",
    5: "bound range exceeded",
    6: "invalid opcode",
    7: "device not available",
    8: "double fault",
    10: "invalid TSS",
    11: "segment not present",
    12: "stack fault",
    13: "general protection fault",
    14: "page fault",
    16: "x87 floating-point error",
    17: "alignment check",
    18: "machine check",
    19: "SIMD floating-point error",
    21: "control protection fault",
}
WRITE, FETCH = 2, 16  # bits of a page fault's error code


@dataclass(frozen=True)
class Fault:
    """One exception of a guest: its vector, the instruction's address, and for a page fault the address touched."""

    vector: int
    exception: str
    error_code: int | None
    rip: int
    rsp: int
    address: int | None
    location: str | None
    """function+offset of `rip`"""
    touched: str | None
    """what lies at `address`"""

    def sentence(self) -> str:
        """Return one clause, such as "page fault writing 0x1000 (no memory there) at main+0x12 (0x100012)"."""
        where = f"{self.location} ({self.rip:#x})" if self.location else f"{self.rip:#x}"
        if self.address is None:
            code = f" (error code {self.error_code:#x})" if self.error_code else ""
            return f"{self.exception}{code} at {where}"
        return f"{self.exception} {_verb(self.error_code)} {self.address:#x} ({self.touched}) at {where}"

    def describe(self) -> dict[str, Any]:
        """Return the fault as plain values, for a message or JSON."""
        return asdict(self)


def _verb(code: int | None) -> str:
    if code is not None and code & FETCH:
        return "executing"
    return "writing" if code is not None and code & WRITE else "reading"


def decode(
    vector: int,
    frame: bytes,
    cr2: int,
    locate: Callable[[int], str | None],
    describe: Callable[[int, bool], str],
) -> Fault:
    """Read the exception frame that the stub left on the ring-0 stack: the pushed RAX, then what the CPU pushed.

    `locate` names a code address; `describe(address, writing)` says what lies at an address.
    """
    words = list(struct.unpack(f"<{len(frame) // 8}Q", frame))[1:]
    code = words.pop(0) if vector in WITH_ERROR_CODE else None
    rip, _cs, _flags, rsp = words[:4]
    address = cr2 if vector == PAGE_FAULT else None
    return Fault(
        vector=vector,
        exception=NAMES.get(vector, f"exception {vector}"),
        error_code=code,
        rip=rip,
        rsp=rsp,
        address=address,
        location=locate(rip),
        touched=None if address is None else describe(address, bool(code is not None and code & WRITE)),
    )
