"""The folder of a network's sockets, its switch's own as long as that lives, and what lives on when that is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import Any

import msgpack

from net import naming
from net.errors import NetError
from shm.naming import runtime_dir

CLAIM_TRIES = 100
ATTACHED = "attached"


class Folder:
    """A network's folder, locked. `attached`: the ports that the killed switch before this one kept, by name.

    Raises NetError when a switch has it already, OSError.
    """

    def __init__(self, cluster: str, network: str) -> None:
        self.path = naming.folder(cluster, network)
        self._lock = self._claim(f"{cluster}/{network}")
        self.attached = self._read()
        for left in self.path.iterdir():
            left.unlink()

    def _claim(self, name: str) -> int:
        runtime_dir()
        for _ in range(CLAIM_TRIES):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:  # Another one has just removed it.
                continue
            with contextlib.suppress(FileNotFoundError):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    raise NetError(f"network {name}: its switch runs already") from None
                if os.path.samestat(os.fstat(lock), self.path.stat()):
                    return lock
            os.close(lock)
        raise NetError(f"network {name}: others make and remove {self.path} all the time")

    def _read(self) -> dict[str, dict[str, Any]]:
        with contextlib.suppress(Exception):  # It may be half written, and then it is nobody's.
            found = msgpack.unpackb(Path(self.path, ATTACHED).read_bytes())
            if isinstance(found, dict):
                return {name: request for name, request in found.items() if isinstance(request, dict)}
        return {}

    def keep(self) -> None:
        """Keep `attached` for the next switch, should this one be killed. Raises OSError."""
        partial = Path(self.path, f"{ATTACHED}.new")
        partial.write_bytes(msgpack.packb(self.attached))
        partial.replace(self.path / ATTACHED)

    def listen(self, backlog: int) -> socket.socket:
        """Return the control socket, listening. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            path = Path(self.path, naming.CONTROL)
            with naming.near(path) as short:
                listener.bind(short)
            path.chmod(0o600)
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
        return listener

    def remove(self) -> None:
        """Remove it, and those it lies in unless they have others."""
        with contextlib.suppress(OSError):
            for left in self.path.iterdir():
                left.unlink()
        with contextlib.suppress(OSError):
            for folder in (self.path, self.path.parent, self.path.parent.parent):
                folder.rmdir()
        os.close(self._lock)
