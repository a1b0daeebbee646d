"""The asking side of a switch's control socket, for asyncio.

process, connection = spawn(Configuration("c", "lan"))
client = await AsyncClient.over(connection)         # raises NetError if the switch could not start
await client.call(requests.add_ring("unikernel", region, mac=mac))
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from typing import Any, Self

from net import wire
from net.client import ANSWER_TIMEOUT, Talk, connect
from net.requests import Request


class AsyncClient(Talk):
    """A client for asyncio; calls from several tasks take turns."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self._turn = asyncio.Lock()
        connection.setblocking(False)

    @classmethod
    async def over(cls, connection: socket.socket, timeout: float = ANSWER_TIMEOUT) -> Self:
        """Take over a connection, once the switch is up. Raises NetError."""
        client = cls(connection)
        try:
            client._greet(await client._within(client._next(), timeout))
        except BaseException:
            client.close()
            raise
        return client

    @classmethod
    async def connect(cls, cluster: str, network: str) -> Self:
        """Connect to the switch of a network. Raises NetError."""
        return await cls.over(connect(cluster, network))

    async def call(self, request: Request, timeout: float | None = ANSWER_TIMEOUT) -> Any:
        """Ask, and return the answer. Raises NetError with the switch's own sentence, or when there is none in time."""
        data = wire.pack(request.fields, wire.REQUEST_LIMIT)
        async with self._turn:
            return self._result(await self._within(self._exchange(data, request.descriptors), timeout))

    async def _exchange(self, data: bytes, descriptors: tuple[int, ...]) -> dict[str, Any]:
        # Whoever waits for each answer always has room for the next request's first bytes.
        sent = wire.send(self.connection, data, descriptors)
        if sent < len(data):
            await asyncio.get_running_loop().sock_sendall(self.connection, data[sent:])
        return await self._next()

    async def _next(self) -> dict[str, Any]:
        while not self._waiting:
            self._feed(await asyncio.get_running_loop().sock_recv(self.connection, wire.CHUNK))
        return self._waiting.pop(0)

    async def _within(self, asked: Awaitable[dict[str, Any]], timeout: float | None) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = await asyncio.wait_for(asked, timeout)
        except TimeoutError:
            self.close()
            raise self._silent(timeout) from None
        except OSError as error:
            raise self._lost(error) from None
        except asyncio.CancelledError:
            self.close()
            raise
        return answer
