"""What the info area is made of: structures, texts and tables, each at an offset from its start."""

from __future__ import annotations

from typing import Any

from hostd.boot._abi import ffi


class InfoArea:
    """Bytes of the info area, growing from struct guest_info at its start."""

    def __init__(self) -> None:
        self.bytes = bytearray(ffi.sizeof("struct guest_info"))

    def append(self, data: bytes) -> int:
        """Add `data` 8-byte aligned; return its offset."""
        self.bytes += bytes(-len(self.bytes) % 8)
        offset = len(self.bytes)
        self.bytes += data
        return offset

    def text(self, value: str, *, room: int = 0) -> dict[str, int]:
        """Add a text with its closing zero, in at least `room` bytes."""
        data = value.encode()
        return {"offset": self.append((data + b"\0").ljust(room, b"\0")), "size": len(data)}

    def texts(self, values: list[str]) -> dict[str, int]:
        return self.table("struct guest_span", [self.text(value) for value in values])

    def table(self, item: str, items: list[dict[str, Any]]) -> dict[str, int]:
        array = ffi.new(f"{item}[]", items)
        return {"offset": self.append(bytes(ffi.buffer(array))), "size": len(items)}
