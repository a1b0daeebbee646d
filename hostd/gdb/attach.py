"""The call "debug" of a guest process: a socket on which a debugger finds the guest, one at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from hostd.gdb.debugger import Debugger
from hostd.gdb.session import Session

if TYPE_CHECKING:
    from hostd.vmm.process import GuestProcess

LEAVING = 0.2
"""seconds in which a debugger that has gone has left nothing in the guest"""
_doors: dict[str, Door] = {}
"""by path: a guest process has one"""


class Door:
    """Waits for debuggers at `path`; a thread of its own serves them, one after the other."""

    def __init__(self, process: GuestProcess, path: str) -> None:
        self._process = process
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._listener.bind(path)
            os.chmod(path, 0o600)
            self._listener.listen(2)
        except OSError as error:
            self._listener.close()
            raise ValueError(f"{path}: cannot be listened on: {error.strerror}") from None
        self._session: threading.Thread | None = None
        threading.Thread(target=self._wait, name="gdb-door", daemon=True).start()

    def busy(self, patience: float = 0.0) -> bool:
        """Whether a debugger is attached; one that is just leaving has `patience` seconds for it."""
        if self._session is not None:
            self._session.join(patience)
        return self._session is not None and self._session.is_alive()

    def _wait(self) -> None:
        while True:
            link, _ = self._listener.accept()
            if self.busy(LEAVING):
                link.close()
                continue
            self._session = threading.Thread(target=self._serve, args=(link,), name="gdb", daemon=True)
            self._session.start()

    def _serve(self, link: socket.socket) -> None:
        guest = self._process.guest
        with link:
            if guest is not None and self._process.result is None:
                Session(Debugger(guest), link, lambda: self._process.stop({})).serve()


def debug(process: GuestProcess, _message: dict[str, Any]) -> str:
    """Return the path of the socket where a debugger is served.

    Raises ValueError when the guest has ended, another debugger is there or there can't be a socket.
    """
    if process.guest is None or process.result is not None:
        raise ValueError("its guest does not run")
    path = f"{process.spec['dir']}/guests/{process.name}.gdb.sock"
    if path not in _doors:
        _doors[path] = Door(process, path)
    if _doors[path].busy(LEAVING):
        raise ValueError("a debugger is attached to it already; let it detach first")
    return path
