"""A guest's console on this terminal: what it says and what is typed; Ctrl-] detaches.

The guest's process sends the last 16 KiB that were said to who attaches.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

from hostd.agent.link import AgentError

DETACH = b"\x1d"
"""Ctrl-]"""
CHUNK = 65536
BACKLOG = 1 << 16
"""bytes typed and not yet taken by the guest, from which on no more are read"""


def connect(path: Path, name: str) -> socket.socket:
    """Return a connection to the console of the guest `name`. Raises AgentError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        link.connect(os.fspath(path))
    except OSError as error:
        link.close()
        raise AgentError(
            f"guest {name}: its console can't be reached ({error.strerror}); is it a Linux guest, and running? "
            "`hostd ps` tells, and `hostd logs` shows what any guest wrote"
        ) from None
    link.setblocking(False)
    return link


def attend(link: socket.socket, *, source: int = 0, sink: int = 1, detachable: bool = True) -> bool:
    """Carry bytes both ways between `link` and the descriptors, until the guest ends, or Ctrl-] or SIGTERM detaches.

    Returns whether the guest has ended. When `source` ends, what the guest says is shown on. With `detachable` off,
    Ctrl-] is a byte like any other.
    """
    pending = b""
    reading = True
    with _stop_signals() as stopped:
        while True:
            sources: list[int] = [link.fileno(), stopped]
            if reading and len(pending) < BACKLOG:
                sources.append(source)
            ready, writable, _ = select.select(sources, [link] if pending else [], [])
            if stopped in ready:
                return False
            if link.fileno() in ready:
                try:
                    data = link.recv(CHUNK)
                except BlockingIOError:
                    continue
                except OSError:
                    return True
                if not data:
                    return True
                _write(sink, data)
            if source in ready:
                typed = os.read(source, CHUNK)
                reading = bool(typed)
                before, found, _ = typed.partition(DETACH) if detachable else (typed, b"", b"")
                pending += before
                if found:
                    _send(link, pending)
                    return False
            if pending and (writable or source in ready):
                pending = _send(link, pending)


@contextlib.contextmanager
def raw_terminal(descriptor: int = 0) -> Iterator[bool]:
    """Pass every key on as it is typed, if `descriptor` is a terminal; tell whether it is."""
    if not os.isatty(descriptor):
        yield False
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield True
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _stop_signals() -> Iterator[int]:
    """Give a descriptor that can be read once SIGINT, SIGTERM or SIGHUP has arrived."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(_number: int, _frame: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"!")

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _send(link: socket.socket, data: bytes) -> bytes:
    """Send what fits; return the rest."""
    try:
        return data[link.send(data) :] if data else b""
    except BlockingIOError:
        return data
    except OSError:  # The guest ended; reading tells.
        return b""


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
