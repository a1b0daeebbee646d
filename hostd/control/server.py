"""The answering side: an asyncio server on a Unix socket.

One connection can't disturb another or the supervisor: frames are limited, a frame must be whole within a
time limit, and whatever is wrong gets one error and the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from hostd.control.client import VERSION
from hostd.control.framing import REQUEST_LIMIT, FrameError, FrameReader, Message, pack_frame

Call = Callable[[Mapping[str, Any]], Awaitable[object]]
FRAME_TIMEOUT = 10.0
"""seconds in which a frame that has begun must be whole"""
CONNECTION_LIMIT = 128


class Stream:
    """A call's answer after which its connection carries something else: `ok` first, then `carry`, then the end.

    The client sends nothing more before it has the answer.
    """

    def __init__(
        self, ok: object, carry: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> None:
        self.ok = ok
        self.carry = carry


class RequestError(Exception):
    """A request that can't be done; the text, one sentence, is the answer."""


class Server:
    """Answers requests on the socket at `path` (mode 0600) with `calls`, by name."""

    def __init__(self, path: Path, hello: Message, calls: Mapping[str, Call]) -> None:
        self.path = path
        self._hello = {"hello": VERSION, **hello}
        self._calls = calls
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self.path.unlink(missing_ok=True)
            listener.bind(os.fspath(self.path))
            self.path.chmod(0o600)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener)
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Close the socket and every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > CONNECTION_LIMIT:
                await _send(writer, {"id": None, "error": f"more than {CONNECTION_LIMIT} connections; try again"})
            else:
                await self._converse(reader, writer)
        except FrameError as error:
            with contextlib.suppress(OSError):
                await _send(writer, {"id": None, "error": f"control: {error}"})
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = FrameReader(REQUEST_LIMIT)
        await _send(writer, self._hello)
        while True:
            messages: list[Message] = []
            limit = asyncio.timeout(None)
            async with limit:
                while not messages:
                    data = await reader.read(65536)
                    if not data:
                        return
                    messages = frames.feed(data)
                    if frames.midway and limit.when() is None:
                        limit.reschedule(asyncio.get_running_loop().time() + FRAME_TIMEOUT)
            for message in messages:
                answer, stream = await self._answer(message)
                await _send(writer, answer)
                if stream is not None:
                    await stream.carry(reader, writer)
                    return

    async def _answer(self, request: Message) -> tuple[Message, Stream | None]:
        name = request.get("call")
        stream: Stream | None = None
        try:
            ok = await self._call(request, name)
            if isinstance(ok, Stream):
                stream = ok
                ok = stream.ok
            answer = {"ok": ok}
            pack_frame(answer)
        except (RequestError, FrameError) as error:
            answer = {"error": f"{error}"}
        except (KeyError, TypeError, ValueError) as error:
            answer = {"error": f"{name}: wrong arguments: {error!r}"}
        except OSError as error:
            answer = {"error": f"{name}: {error}"}
        return {"id": request.get("id"), **answer}, stream

    async def _call(self, request: Message, name: object) -> object:
        arguments = request.get("args", {})
        call = self._calls.get(name) if isinstance(name, str) else None
        if request.get("v") != VERSION:
            raise RequestError(f"version {request.get('v')!r} is not spoken here, only {VERSION}")
        if call is None:
            raise RequestError(f"there is no call {name!r}")
        if not isinstance(arguments, dict):
            raise RequestError(f"{name}: args is no map")
        return await call(arguments)


async def _send(writer: asyncio.StreamWriter, message: Message) -> None:
    writer.write(pack_frame(message))
    await writer.drain()
