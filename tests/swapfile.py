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
        subprocess.run(["mkswap", file], capture_output=True, check=True)
        with _turned_on(file) as problem:
            if problem:
                pytest.skip(f"this host takes no swap file: {problem}")
            yield
        file.unlink()


@contextlib.contextmanager
def _turned_on(file: Path) -> Iterator[str]:
    """Swap to `file`, by a loop device where its file system takes none; yield what is wrong, or ""."""
    device, problem = str(file), _command("swapon", str(file))
    if problem:
        found = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True, check=False)
        device = found.stdout.strip()
        problem = _command("swapon", device) if device else found.stderr
    try:
        yield problem
    finally:
        if not problem:
            subprocess.run(["swapoff", device], check=True)
        if device and device != str(file):
            subprocess.run(["losetup", "--detach", device], check=True)


def _command(*argv: str) -> str:
    """Run a command; return "" or what it says is wrong."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""
