"""A figure as a reader wants it: three digits or four, with a prefix that fits."""

from __future__ import annotations

from collections.abc import Sequence

_TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1, "ns"))
_SCALES: dict[str, tuple[float, Sequence[tuple[float, str]]]] = {
    "ns": (1, _TIMES),
    "s": (1e9, _TIMES),
    "bytes": (1, ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))),
    "bytes/s": (1, ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1, "bytes/s"))),
}
"""by unit: how many of the smallest step it is, and the steps"""


def quantity(value: float, unit: str) -> str:
    """Return `value` in `unit`, a figure's or "ratio": 1234.5 ns is "1.23 us"."""
    if unit in _SCALES:
        times, steps = _SCALES[unit]
        return _scaled(value * times, steps)
    if unit == "ratio":
        return _number(value)
    if abs(value) >= 1e6:
        return f"{_number(value / 1e6)} million {unit}"
    return f"{_number(value)} {unit}"


def short(value: float, label: str) -> str:
    """Return `value` for an axis called `label`, where room is little: 20000 is "20k", 4096 bytes are "4Ki"."""
    if label in ("ns", "s"):
        return quantity(value, label)
    step, prefixes = (1024.0, ("", "Ki", "Mi", "Gi", "Ti")) if is_binary(label) else (1000.0, ("", "k", "M", "G", "T"))
    for prefix in prefixes:
        if abs(value) < step or prefix == prefixes[-1]:
            break
        value /= step
    return f"{value:.3g}{prefix}"


def is_binary(label: str) -> bool:
    """Tell whether what an axis called `label` counts comes in powers of two: bytes, but not bytes a second."""
    return "byte" in label and "/s" not in label and "second" not in label


def _scaled(value: float, steps: Sequence[tuple[float, str]]) -> str:
    factor, unit = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    return f"{_number(value / factor)} {unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
