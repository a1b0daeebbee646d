"""A debugger's own client at an address of its choice: what it and a guest's stub say is passed on."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

PIECE = 65536


@contextlib.contextmanager
def listening(where: str) -> Iterator[tuple[socket.socket, str]]:
    """Listen at HOST:PORT, or at a path; yield the socket, and the address as gdb's `target remote` takes it.

    Raises OSError.
    """
    host, colon, port = where.rpartition(":")
    if colon and port.isdigit() and "/" not in where:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host.strip("[]") or "127.0.0.1", int(port)), family=family) as listener:
            name = host or "127.0.0.1"
            yield listener, f"{name}:{listener.getsockname()[1]}"
        return
    path = Path(where).absolute()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(path))
        except OSError as error:
            raise OSError(error.errno, error.strerror, where) from None
        try:
            os.chmod(path, 0o600)
            listener.listen(1)
            yield listener, str(path)
        finally:
            path.unlink(missing_ok=True)


def connect(path: str) -> socket.socket:
    """Return a connection to a guest's stub. Raises OSError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(path)
    except OSError:
        link.close()
        raise
    return link


def serve(listener: socket.socket, find: Callable[[], str]) -> None:
    """Pass on what clients say, one after the other, for ever; `find` returns where the stub is.

    Raises OSError, and what `find` does.
    """
    while True:
        client, _ = listener.accept()
        with client, connect(find()) as stub:
            _pass_on(client, stub)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    """Pass on both ways until one side has closed."""
    across = {one: other, other: one}
    while True:
        for ready in select.select(list(across), [], [])[0]:
            try:
                data = ready.recv(PIECE)
                if not data:
                    return
                across[ready].sendall(data)
            except OSError:
                return
