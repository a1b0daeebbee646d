"""Swap for a test, on a host that has none: a file that is turned on, and off again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.memory.swap import host_memory

SIZE = 192 << 20


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Be the only test that looks at, or changes, whether the host has swap."""
    with (Path(tempfile.gettempdir()) / f"hostd-tests-swap-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def swapping(folder: Path) -> Iterator[None]:
    """Have swap: the host's own, or a file in `folder`. Skips the test where neither can be."""
    with alone():
        if host_memory().swap_free >= SIZE:
            yield
            return
        file = folder / "swap"
        with file.open("wb") as opened:
            os.posix_fallocate(opened.fileno(), 0, SIZE)
        file.chmod(0o600)
        made = subprocess.run(["mkswap", file], capture_output=True, text=True, check=False)
        on = subprocess.run(["swapon", file], capture_output=True, text=True, check=False)
        if made.returncode or on.returncode:
            pytest.skip(f"this host takes no swap file: {made.stderr}{on.stderr}")
        try:
            yield
        finally:
            subprocess.run(["swapoff", file], check=True)
            file.unlink()
