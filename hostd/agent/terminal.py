"""This process's terminal, or pipes, joined to a command in a guest."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import sys
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from guestlib.linux import protocol
from guestlib.linux.protocol import Type
from hostd.agent.link import error_of, status_of

CHUNK = 65536
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Remote(Protocol):
    """A command elsewhere: `hostd.agent.link.Stream`, or one by way of a supervisor."""

    async def send(self, data: bytes) -> None: ...

    async def control(self, kind: Type, payload: bytes = b"") -> None: ...

    async def receive(self) -> tuple[Type, bytes]: ...


def window() -> tuple[int, int] | None:
    """Return rows and columns if standard input and output are a terminal, else None."""
    if not (os.isatty(0) and os.isatty(1)):
        return None
    rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(1, termios.TIOCGWINSZ, bytes(8)))
    return rows or 24, columns or 80


async def attend(
    remote: Remote, *, terminal: bool, stdin: bool = True, on_signal: Callable[[int], None] | None = None
) -> int:
    """Carry input (if `stdin`), output, signals and window sizes until the command ends; return its exit status.

    `on_signal` is told of each signal that was passed on. Raises AgentError when it can't be started or the
    connection breaks off.
    """
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def forward(number: int) -> None:
        spawn(remote.control(Type.SIGNAL, protocol.U32.pack(number)))
        if on_signal is not None:
            on_signal(number)

    def resized() -> None:
        size = window()
        if size is not None:
            spawn(remote.control(Type.RESIZE, protocol.SIZE.pack(*size)))

    for number in FORWARDED:
        loop.add_signal_handler(number, forward, number)
    if terminal:
        loop.add_signal_handler(signal.SIGWINCH, resized)
    if stdin:
        spawn(_carry_input(remote))
    try:
        with _raw(terminal):
            return await _carry_output(remote)
    finally:
        for number in (*FORWARDED, signal.SIGWINCH):
            loop.remove_signal_handler(number)
        for task in list(tasks):
            task.cancel()


async def collect(remote: Remote, stdin: bytes) -> tuple[int, bytes, bytes]:
    """Give a command `stdin`; return its exit status, standard output and standard error. Raises AgentError."""

    async def give() -> None:
        await remote.send(stdin)
        await remote.control(Type.EOF)

    giving = asyncio.ensure_future(give())
    found = {Type.STDOUT: bytearray(), Type.STDERR: bytearray()}
    try:
        while True:
            kind, payload = await remote.receive()
            if kind in found:
                found[kind] += payload
            elif kind == Type.EXIT:
                return status_of(payload), bytes(found[Type.STDOUT]), bytes(found[Type.STDERR])
            elif kind == Type.ERROR:
                raise error_of(payload)
    finally:
        giving.cancel()
        await asyncio.gather(giving, return_exceptions=True)


async def _carry_output(remote: Remote) -> int:
    while True:
        kind, payload = await remote.receive()
        if kind == Type.STDOUT:
            await asyncio.to_thread(_write, 1, payload)
        elif kind == Type.STDERR:
            await asyncio.to_thread(_write, 2, payload)
        elif kind == Type.EXIT:
            return status_of(payload)
        elif kind == Type.ERROR:
            raise error_of(payload)


async def _carry_input(remote: Remote) -> None:
    while data := await _read(0):
        await remote.send(data)
    await remote.control(Type.EOF)


async def _read(descriptor: int) -> bytes:
    """Return the next bytes of `descriptor`, b"" at its end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:  # A file, which is always ready.
        return os.read(descriptor, CHUNK)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    try:
        return os.read(descriptor, CHUNK)
    except OSError:
        return b""


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    with contextlib.suppress(BrokenPipeError):
        while view:
            view = view[os.write(descriptor, view) :]


@contextlib.contextmanager
def _raw(terminal: bool) -> Iterator[None]:
    """Pass every key on as it is typed."""
    if not terminal:
        yield
        return
    sys.stdout.flush()
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
