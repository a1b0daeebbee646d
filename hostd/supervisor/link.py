"""The supervisor's connections: to one guest process, and to the warm parent that forks them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from hostd.control.framing import FrameError, FrameReader, Message, pack_frame

WARM_LIMIT = 1 << 20


class GuestLink:
    """A connection to a guest process.

    `on_message` gets every message, `on_end` is called once when the other end has closed; both from the loop.
    `frames` carries what was read of the stream before.
    """

    def __init__(
        self,
        link: socket.socket,
        on_message: Callable[[Message], None],
        on_end: Callable[[], None],
        frames: FrameReader | None = None,
    ) -> None:
        self._socket = link
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_end = on_end
        self._frames = frames or FrameReader()
        self._outgoing = bytearray()
        self._open = True
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._loop.add_reader(link, self._readable)

    def send(self, message: Message) -> None:
        """Send `message`; what the socket doesn't take at once goes out as it can."""
        if not self._open:
            return
        self._outgoing += pack_frame(message)
        self._writable()

    async def call(self, name: str, timeout: float = 5.0, **arguments: Any) -> Any:
        """Ask the guest process; return its answer. Raises OSError (no answer, an error, a broken connection)."""
        if not self._open:
            raise ConnectionResetError("the guest has ended")
        self._number += 1
        number = self._number  # Others may ask meanwhile.
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._answers[number] = answer
        self.send({"id": number, "call": name, **arguments})
        try:
            async with asyncio.timeout(timeout):
                return await answer
        finally:
            self._answers.pop(number, None)

    def drain(self) -> None:
        """Take what the other end has sent by now."""
        while self._open and self._readable():
            pass

    def close(self) -> None:
        """Close the connection; `on_end` isn't called for it."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError("the guest has ended"))

    def _readable(self) -> bool:
        try:
            data = self._socket.recv(65536)
            messages = self._frames.feed(data)
        except BlockingIOError:
            return False
        except (OSError, FrameError):
            data, messages = b"", []
        for message in messages:
            self._take(message)
        if not data and self._open:
            self.close()
            self._on_end()
        return bool(data)

    def _take(self, message: Message) -> None:
        number = message.get("id")
        if number is None:
            self._on_message(message)
            return
        answer = self._answers.pop(number, None) if isinstance(number, int) else None
        if answer is not None and not answer.done():
            if "error" in message:
                answer.set_exception(OSError(str(message["error"])))
            else:
                answer.set_result(message.get("ok"))

    def _writable(self) -> None:
        try:
            while self._outgoing:
                sent = self._socket.send(self._outgoing)
                del self._outgoing[:sent]
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._writable)
            return
        except OSError:  # The reader sees the end.
            self._outgoing.clear()
        self._loop.remove_writer(self._socket)


class WarmLink:
    """The connection to the warm parent. `on_end` is called when it is gone."""

    def __init__(self, link: socket.socket, on_message: Callable[[Message], None], on_end: Callable[[], None]) -> None:
        self._socket = link
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_end = on_end
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()
        self._open = True
        self._loop.add_reader(link, self._readable)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send `message` and copies of `descriptors`, which stay open at least until they are sent.

        Raises OSError when the message is too large for the socket, or the warm parent is gone.
        """
        packed = msgpack.packb(message)
        if self._outgoing:
            self._outgoing.append((packed, [os.dup(d) for d in descriptors]))
            return
        try:
            socket.send_fds(self._socket, [packed], descriptors)
        except BlockingIOError:
            self._outgoing.append((packed, [os.dup(d) for d in descriptors]))
            self._loop.add_writer(self._socket, self._writable)

    def close(self) -> None:
        """Close the connection; `on_end` isn't called for it."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            while self._outgoing:
                self._discard()

    def _discard(self) -> None:
        for descriptor in self._outgoing.popleft()[1]:
            os.close(descriptor)

    def _writable(self) -> None:
        while self._outgoing:
            try:
                socket.send_fds(self._socket, [self._outgoing[0][0]], self._outgoing[0][1])
            except BlockingIOError:
                return
            except OSError:  # The reader sees the end.
                pass
            self._discard()
        self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        while self._open:
            try:
                data = self._socket.recv(WARM_LIMIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                self._on_end()
                return
            self._on_message(msgpack.unpackb(data))
