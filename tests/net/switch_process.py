"""A real switch process for a test, in a runtime folder of the test's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from net import requests
from net.client import Client
from net.errors import NetError
from net.process import Configuration, spawn
from net.requests import Request

BROADCAST = b"\xff" * 6
TYPE = b"\x88\xb5"  # for local experiments (IEEE 802)
LIMIT = 10.0


class SwitchProcess:
    """The switch of c/lan: `process`, and `client`, its lifeline."""

    def __init__(self, folder: Path, **configuration: Any) -> None:
        self.folder = folder
        self.configuration = Configuration(**{"cluster": "c", "network": "lan", "spin": 20, **configuration})
        self.start()

    def start(self) -> None:
        self.process, connection = spawn(self.configuration, stderr=subprocess.PIPE)
        self.client = Client(connection)

    def call(self, request: Request) -> Any:
        return self.client.call(request)

    def show(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call(requests.show())
        return found

    def port(self, name: str) -> dict[str, Any]:
        return next(port for port in self.show()["ports"] if port["name"] == name)

    def ports(self) -> list[str]:
        return [port["name"] for port in self.show()["ports"]]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(LIMIT)
        self.client.close()

    def end(self) -> str:
        """Close its lifeline; return what it said on stderr."""
        self.client.close()
        _, errors = self.process.communicate(timeout=LIMIT)
        return str(errors.decode())


@contextmanager
def running(**configuration: Any) -> Iterator[SwitchProcess]:
    """Run one; it ends without a word and leaves nothing, whatever a test did to it."""
    folder = Path(tempfile.mkdtemp(prefix="net-"))  # A short path: sockets lie there.
    before = os.environ.get("HOSTD_RUNTIME_DIR")
    os.environ["HOSTD_RUNTIME_DIR"] = str(folder)
    try:
        switch = SwitchProcess(folder, **configuration)
        try:
            yield switch
        finally:
            errors = switch.end()
        assert errors == ""
        assert not (folder / "net").exists()
    finally:
        if before is None:
            del os.environ["HOSTD_RUNTIME_DIR"]
        else:
            os.environ["HOSTD_RUNTIME_DIR"] = before
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared() -> Iterator[SwitchProcess]:
    """The switch of a module's tests."""
    with running() as found:
        yield found


@pytest.fixture
def switch(shared: SwitchProcess) -> Iterator[SwitchProcess]:
    """A switch of c/lan with an MTU of 1500, which the test leaves as it was: alive, and without ports."""
    yield shared
    assert shared.process.poll() is None
    for name in shared.ports():
        with contextlib.suppress(NetError):  # One that is held goes by itself.
            shared.call(requests.remove(name))
    until(lambda: not shared.show()["captures"], "a capture goes on")


@pytest.fixture
def own() -> Iterator[SwitchProcess]:
    """A switch for one test, to be killed."""
    with running() as found:
        yield found


def until(true: Callable[[], object], what: str) -> None:
    """Wait until it is."""
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def mac(number: int) -> bytes:
    """Return an address."""
    return b"\2\0\0\0" + number.to_bytes(2)


def frame(to: bytes, source: bytes, payload: bytes = b"") -> bytes:
    """Return a frame of a type for experiments."""
    return to + source + TYPE + payload


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Run a program in a process of its own, with pipes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], text=True, **pipes)
