"""Looking for bytes in a guest's memory, from outside its process."""

from __future__ import annotations

from typing import Any, Protocol


class Caller(Protocol):
    """A connection to a supervisor."""

    def call(self, name: str, **arguments: Any) -> Any: ...


def search(client: Caller, guest: str, pattern: bytes, *, slot: str | None, limit: int) -> list[int]:
    """Return at most `limit` guest physical addresses of `pattern`, in all slots but devices or in one.

    The guest runs on meanwhile. Raises ControlError.
    """
    matches: list[int] = []
    start: int | None = 0
    while start is not None and len(matches) < limit:
        left = limit - len(matches)
        found = client.call("search", guest=guest, pattern=pattern, slot=slot, start=start, limit=left)
        matches += found["matches"]
        start = found["next"]
    return matches
