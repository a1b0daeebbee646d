"""What can be wrong with a row of a slot table."""

from __future__ import annotations

import os


class SlotError(ValueError):
    """A row that can't be: its address, size or place; or an address that no row holds.

    The text is a sentence.
    """


class BackingError(OSError):
    """The host can't give a row its memory; the text is a sentence, `errno` the kernel's answer."""

    def __init__(self, errno: int, text: str) -> None:
        super().__init__(errno, text)

    def __str__(self) -> str:
        return str(self.strerror)


def reason(errno: int) -> str:
    """Return the kernel's words for `errno`, to stand inside a sentence."""
    return os.strerror(errno).lower()
