"""Checked reading of a request's fields: whatever is wrong is said in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from net.errors import NetError

U32 = 0xFFFFFFFF


class Fields:
    """The fields of the map `where`. Each is taken once; `end` raises for those that nobody took. Raises NetError."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self.where = where
        self._values = dict(values)

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Take an integer from `low` to `high`; one that is missing is `default`, or an error."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, value, f"an integer from {low} to {high}")
        return value

    def number_or_none(self, key: str, low: int, high: int) -> int | None:
        """Take an integer from `low` to `high`, or None."""
        if self._values.get(key) is None:
            self._values.pop(key, None)
            return None
        return self.number(key, low, high)

    def flag(self, key: str, default: bool) -> bool:
        """Take a truth value."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str) -> str:
        """Take a text without zeros, of 1 to 255 bytes."""
        value = self._take(key, None)
        if not _is_text(value):
            raise self._wrong(key, value, "a text of 1 to 255 bytes")
        return str(value)

    def text_or_none(self, key: str) -> str | None:
        """Take a text, or None."""
        if self._values.get(key) is None:
            self._values.pop(key, None)
            return None
        return self.text(key)

    def texts(self, key: str, most: int) -> list[str]:
        """Take a list of at most `most` texts."""
        value = self._take(key, [])
        if not isinstance(value, list) or len(value) > most or not all(map(_is_text, value)):
            raise self._wrong(key, value, f"a list of at most {most} texts")
        return value

    def mac(self, key: str) -> bytes | None:
        """Take a port's own address, or None."""
        value = self._values.pop(key, None)
        if value is None:
            return None
        if not _is_mac(value) or value[0] & 1 or not any(value):
            raise self._wrong(key, value, "six bytes that are one interface's address")
        return bytes(value)

    def macs(self, key: str, most: int) -> list[bytes]:
        """Take a list of at most `most` addresses of any kind."""
        value = self._take(key, [])
        if not isinstance(value, list) or len(value) > most or not all(map(_is_mac, value)):
            raise self._wrong(key, value, f"a list of at most {most} addresses of six bytes")
        return value

    def table(self, key: str) -> Fields:
        """Take a map."""
        value = self._take(key, None)
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self._wrong(key, value, "a map")
        return Fields(f"{self.where}: {key}", value)

    def end(self) -> None:
        """Raise for a field that nobody knows."""
        for key in self._values:
            raise NetError(f"{self.where}: {_shown(key)} is no field of it")

    def _take(self, key: str, default: Any) -> Any:
        value = self._values.pop(key, default)
        if value is None:
            raise NetError(f"{self.where}: {key} is missing")
        return value

    def _wrong(self, key: str, value: object, wanted: str) -> NetError:
        return NetError(f"{self.where}: {key} is {_shown(value)}; it must be {wanted}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and 0 < len(value.encode(errors="replace")) <= 255


def _is_mac(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == 6


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
