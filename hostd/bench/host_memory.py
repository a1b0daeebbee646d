"""What the host has left."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil


def available() -> int:
    """Return MemAvailable in bytes, after what nobody uses of the page cache was dropped (where that is allowed).

    So page cache that somebody merely read is not counted as anyone's; pages that a guest maps are.
    """
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    return int(psutil.virtual_memory().available)
