"""Clusters of real guests, each in a runtime folder of its own, and a look at what they left."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

PROGRAMS = pathlib.Path(__file__).parent / "programs"
ROOT = pathlib.Path(__file__).parent.parent.parent
LIMIT = 30.0
NUMBERS = itertools.count()


@dataclass
class Place:
    """A runtime folder of a test's own; `file` writes cluster files whose clusters have names of their own."""

    folder: pathlib.Path
    files: pathlib.Path
    names: list[str] = field(default_factory=list)

    def file(self, text: str) -> pathlib.Path:
        """Write a cluster file with `text`; its name is its cluster's. {programs} is the folder of test programs."""
        name = f"t{os.getpid()}-{next(NUMBERS)}"
        self.names.append(name)
        path = self.files / f"{name}.toml"
        path.write_text(text.replace("{programs}", str(PROGRAMS)))
        return path

    def leftovers(self) -> list[str]:
        """Return what is left of this test's clusters: folders, shared memory, processes."""
        empty = ("clusters", "regions", "net", "uplinks", ".lock")
        # Not rglob, which minds a folder that goes away meanwhile.
        walked = os.walk(self.folder)
        left = [f"{folder}/{name}" for folder, *both in walked for names in both for name in names if name not in empty]
        left += [path for path in os.listdir("/dev/shm") if any(f"hostd.{name}." in path for name in self.names)]
        for pid in self._processes():
            with contextlib.suppress(OSError):
                left.append(pathlib.Path("/proc", pid, "cmdline").read_bytes().decode().replace("\0", " "))
        return left

    def kill(self) -> None:
        """Kill what a test that failed has left, or it would run for good."""
        for pid in self._processes():
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)

    def _processes(self) -> list[str]:
        mark, found = f"HOSTD_RUNTIME_DIR={self.folder}".encode(), []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if mark in pathlib.Path("/proc", pid, "environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run `hostd` with `arguments`."""
        return subprocess.run(
            [sys.executable, "-m", "hostd.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
            cwd=ROOT,
        )


def until(done: Callable[[], object], limit: float = LIMIT) -> None:
    """Wait until `done()` is true."""
    deadline = time.monotonic() + limit
    while not done():
        assert time.monotonic() < deadline, f"waited {limit} s"
        time.sleep(0.02)
