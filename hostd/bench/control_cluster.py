"""A cluster whose supervisor is a process of its own, whose guests are started and stopped by request.

It runs in the foreground: when the benchmark is killed, it goes with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import shm
from hostd.bench import BenchError
from hostd.control.client import Client
from hostd.supervisor.directory import ClusterDirectory

PROGRAM = Path(__file__).resolve().parent / "guests" / "first.c"
GROUP = "g"
MESSAGE = 8
"""bytes of a guest's first message"""
PR_SET_PDEATHSIG = 1
START_LIMIT, MESSAGE_LIMIT, END_LIMIT = 60.0, 30.0, 30.0
RETRY = 0.01
TEXT = """[cluster]
name = "{name}"

[region.memory]

[channel.said]
region = "memory"
kind = "mpsc"
size = "1KiB"
max_message = {message}

# Those that are started and stopped.
[guest.{group}]
program = "{program}"
memory = "4MiB"
count = {count}
channels = {{ said = "send" }}

# The run goes on as long as this one does.
[guest.stays]
program = "{program}"
memory = "4MiB"
channels = {{ said = "send" }}
"""


class ControlCluster:
    """`count` guests that have ended, and a supervisor that waits for requests. A context manager.

    Entering raises BenchError: it did not come up, with what it said.
    """

    def __init__(self, count: int) -> None:
        self.name = f"control-{os.getpid()}"
        self.text = TEXT.format(name=self.name, group=GROUP, count=count, message=MESSAGE, program=PROGRAM)
        self.guests = [GROUP] if count == 1 else [f"{GROUP}-{number}" for number in range(count)]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hostd-control-"))
            file = Path(folder, "control.toml")
            file.write_text(self.text)
            process = stack.enter_context(_supervisor(file))
            self.client = stack.enter_context(_connect(self.name, process))
            said = self.client.call("started", timeout=START_LIMIT)["error"]
            if said is not None:
                raise BenchError(str(said))
            region = stack.enter_context(shm.Region.open(f"{self.name}/memory"))
            self._said = stack.enter_context(region.receiver("said"))
            self.hear(len(self.guests) + 1)
            self.stop(self.guests)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def start(self, guests: list[str]) -> list[float]:
        """Ask for `guests`; return the seconds from the request to each one's first message, in the order they came."""
        begin = time.perf_counter_ns()
        self.client.ask("start", guests=guests)
        came = [(when - begin) / 1e9 for when in self.hear(len(guests))]
        started = self.client.answer("start")
        if started != guests:
            raise BenchError(f"{guests} were asked for, and {started} started")
        return came

    def stop(self, guests: list[str]) -> float:
        """Stop `guests`; return the seconds until their processes are gone."""
        begin = time.perf_counter_ns()
        self.client.call("stop", guests=guests)
        return (time.perf_counter_ns() - begin) / 1e9

    def request(self) -> Any:
        """Ask for the states of all guests, as `hostd ps` does."""
        return self.client.call("ps")

    def hear(self, count: int) -> list[int]:
        """Take `count` messages; return when each was here (time.perf_counter_ns). Raises BenchError."""
        times: list[int] = []
        for _ in range(count):
            try:
                message = self._said.recv(MESSAGE_LIMIT)
            except shm.ChannelTimeout:
                raise BenchError(f"of {count} first messages {len(times)} came in {MESSAGE_LIMIT:.0f} s") from None
            times.append(time.perf_counter_ns())
            if len(message) != MESSAGE:
                raise BenchError(f"a first message has {len(message)} bytes, not {MESSAGE}")
        return times


@contextlib.contextmanager
def _supervisor(file: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "hostd.cli", "run", str(file), "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is ours to pass on.
        preexec_fn=_die_with_parent,  # noqa: PLW1509 (no other thread here)
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=END_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _connect(name: str, process: subprocess.Popen[str]) -> Client:
    path = ClusterDirectory(name).control
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        try:
            return Client(path)
        except OSError:
            if process.poll() is not None:
                said = (process.communicate()[1].strip() or "it said nothing").splitlines()[-1]
                raise BenchError(f"the supervisor did not come up: {said}") from None
            time.sleep(RETRY)
    raise BenchError(f"the supervisor was not there after {START_LIMIT:.0f} s")
