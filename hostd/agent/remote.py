"""One stream of a guest's agent by way of its supervisor: what commands and the Python API have in place of the link.

A control connection becomes it by the call `agent`. Its frames are the agent's own (docs/agent-protocol.md) without
the session's number: the first is EXEC, PUT or GET, the rest belong to it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from guestlib.linux import protocol
from guestlib.linux.protocol import Type
from hostd.agent.link import CREDIT_LIMIT, ENDING, AgentError
from hostd.control.client import Client

Found = TypeVar("Found")

ANSWER_LIMIT = 10.0
"""seconds that a supervisor has beyond those that it was told to wait"""


def pack(kind: Type, payload: bytes = b"") -> bytes:
    """Return one frame of a stream."""
    return protocol.FRAME.pack(len(payload), 0, kind) + payload


async def unpack(reader: asyncio.StreamReader) -> tuple[Type, bytes]:
    """Return the next frame of a stream. Raises ValueError, and IncompleteReadError or OSError at its end."""
    length, _, kind = protocol.FRAME.unpack(await reader.readexactly(protocol.FRAME.size))
    if length > protocol.MAX_PAYLOAD:
        raise ValueError(f"a frame of {length} bytes is longer than {protocol.MAX_PAYLOAD}")
    return Type(kind), await reader.readexactly(length)


class RemoteStream:
    """An open stream; as `hostd.agent.link.Stream`. A context manager: leaving it lets the stream go."""

    def __init__(self, guest: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.guest = guest
        self.ended = False
        self._reader = reader
        self._writer = writer
        self._credit = protocol.WINDOW
        self._room = asyncio.Event()

    async def send(self, data: bytes) -> None:
        """Send bytes of standard input, or of a copy, as fast as the guest takes them. `receive` must be at work."""
        view = memoryview(data)
        while view and not self.ended:
            if self._credit == 0:
                self._room.clear()
                await self._room.wait()
                continue
            size = min(len(view), self._credit, protocol.MAX_PAYLOAD)
            self._credit -= size
            await self.control(Type.DATA, bytes(view[:size]))
            view = view[size:]

    async def control(self, kind: Type, payload: bytes = b"") -> None:
        """Send any other frame, unless the stream has ended."""
        if not self.ended:
            with contextlib.suppress(OSError):  # Who receives sees the end.
                self._writer.write(pack(kind, payload))
                await self._writer.drain()

    async def receive(self) -> tuple[Type, bytes]:
        """Return the next frame; after EXIT, DONE or ERROR there is none. Raises AgentError when it broke off."""
        while True:
            try:
                kind, payload = await unpack(self._reader)
            except (EOFError, OSError, ValueError):
                self._end()
                raise AgentError(f"guest {self.guest}: the connection to its supervisor was lost") from None
            if kind == Type.CREDIT and len(payload) == protocol.U32.size:
                self._credit = min(self._credit + protocol.U32.unpack(payload)[0], CREDIT_LIMIT)
                self._room.set()
                continue
            if kind in ENDING:
                self._end()
            return kind, payload

    def _end(self) -> None:
        self.ended = True
        self._room.set()

    async def __aenter__(self) -> RemoteStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def open_stream(client: Client, guest: str, kind: Type, payload: bytes, *, wait: float = 0.0) -> RemoteStream:
    """Make `client`'s connection a stream of `guest`, opened by a frame of that kind; `client` is used up.

    Waits up to `wait` seconds for an agent that does not answer yet. Raises ControlError with the reason why not.
    """
    with client:
        client.call("agent", timeout=wait + ANSWER_LIMIT, guest=guest, wait=wait)
        link: socket.socket = client.detach()
    link.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=link)
    stream = RemoteStream(guest, reader, writer)
    await stream.control(kind, payload)
    return stream


def finish(work: Coroutine[Any, Any, Found]) -> Found:
    """Do `work` in an event loop of its own and return what it gives, also in a thread that has a loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
