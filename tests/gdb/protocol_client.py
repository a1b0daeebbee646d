"""A client of the remote protocol, with a session of its own at the other end of a socket."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace

from hostd.gdb.debugger import Debugger
from hostd.gdb.packets import PacketReader, Signal, packet
from hostd.gdb.session import Session


class Client:
    """The other end of a session."""

    def __init__(self, guest: SimpleNamespace) -> None:
        self.guest, self.killed = guest, threading.Event()
        self.link, other = socket.socketpair()
        self.link.settimeout(10)
        self._reader = PacketReader()
        self._items: list[object] = []
        debugger = Debugger(guest)  # type: ignore[arg-type]
        self.trap = debugger.control.code.trap

        def serve() -> None:
            with other:
                Session(debugger, other, self.killed.set).serve()

        self.thread = threading.Thread(target=serve)
        self.thread.start()
        assert self.ask(b"QStartNoAckMode") == b"OK"
        self.link.sendall(b"+")

    def send(self, data: bytes) -> None:
        self.link.sendall(data)

    def answer(self) -> bytes:
        """Return the next packet that comes."""
        while True:
            while self._items:
                item = self._items.pop(0)
                if isinstance(item, bytes):
                    return item
                assert isinstance(item, Signal)
            data = self.link.recv(65536)
            assert data, "the session is over"
            self._items += self._reader.feed(data)

    def ask(self, data: bytes) -> bytes:
        self.send(packet(data))
        return self.answer()

    def close(self) -> None:
        self.link.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
