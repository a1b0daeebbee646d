"""`--set KEY=VALUE`: change a key of the cluster file before it is checked."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from hostd.cluster.errors import ClusterFileError


def apply_overrides(tables: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set in `tables` what each of `overrides`, such as "guest.hello.count=200", says.

    The value is TOML; what is no TOML value is taken as text. Raises ClusterFileError naming the override.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise ClusterFileError(f"--set {override}: is no override; write KEY=VALUE, such as guest.hello.count=200")
        table = tables
        for depth, part in enumerate(path[:-1]):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ClusterFileError(f"--set {override}: {'.'.join(path[: depth + 1])} is a value and has no keys")
        table[path[-1]] = _value(text.strip())


def _value(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text
