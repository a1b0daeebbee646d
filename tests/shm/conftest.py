"""What tests of shared memory need."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shm

numbers = itertools.count()


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of the test's own; nothing may be left in it, nor in /dev/shm."""
    folder = Path(tempfile.mkdtemp(prefix="hostd-shm-"))
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(folder))
    yield folder
    left = [path for path in folder.rglob("*") if path.is_socket()]
    left += Path("/dev/shm").glob(f"hostd.shmtest-{os.getpid()}-*")
    shutil.rmtree(folder)
    for path in left:
        path.unlink(missing_ok=True)
    assert left == []


@pytest.fixture
def name() -> str:
    """A region's name that no other test uses."""
    return f"shmtest-{os.getpid()}-{next(numbers)}/link"


@pytest.fixture
def make(name: str) -> Iterator[Callable[..., shm.Region]]:
    """Make the test's region with the channels given, as (name, kind, fields); it is closed afterwards."""
    made: list[shm.Region] = []

    def create(*channels: shm.ChannelSpec, serve: bool = False, size: int = 0) -> shm.Region:
        made.append(shm.Region.create(name, channels=channels, serve=serve, size=size))
        return made[-1]

    yield create
    for region in made:
        region.close()


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Run a function in a forked process and return its id; all are killed and reaped at the end."""
    children: list[int] = []

    def start(work: Callable[[], object]) -> int:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
        return child

    yield start
    for child in children:
        try:
            os.kill(child, 9)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds; fails after ten seconds."""

    def wait(holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline, "it did not come to hold"
            time.sleep(0.002)

    return wait
