"""One picture out of a guest's frame buffer. The guest draws on meanwhile, so a picture may hold parts of two."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

READ = 1 << 20
"""bytes that one request may have of a guest's memory"""
PIXEL_FORMAT = "BGRX"


class Reader(Protocol):
    """Reads a guest's memory: from a guest physical address, so many bytes (READ at most)."""

    def __call__(self, gpa: int, size: int) -> bytes: ...


@dataclass(frozen=True)
class Frame:
    """Where a guest's picture lies in its memory (`gpa`), its size in pixels, and how far apart rows are, in bytes."""

    gpa: int
    width: int
    height: int
    stride: int

    def take(self, read: Reader) -> bytes:
        """Return the bytes of the picture as they are in memory."""
        size = self.stride * self.height
        return b"".join(read(self.gpa + at, min(READ, size - at)) for at in range(0, size, READ))

    def image(self, memory: bytes) -> Image.Image:
        """Return the picture that `memory`, from `take`, holds."""
        return Image.frombuffer("RGB", (self.width, self.height), memory, "raw", PIXEL_FORMAT, self.stride, 1)


def png(image: Image.Image, *, fast: bool = False) -> bytes:
    """Return `image` as a PNG file; `fast` when it is looked at once."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1 if fast else 6)
    return file.getvalue()
