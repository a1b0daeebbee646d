"""The asking side of a switch's control socket: blocking here, for asyncio in `net.async_client`.

with Client.connect("c", "lan") as client:
    client.call(requests.add_vhost("guest", mac=mac))
    client.call(requests.show())
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Any, Self

from net import naming, wire
from net.errors import NetError
from net.requests import Request

ANSWER_TIMEOUT = 30.0
"""seconds"""


class ConnectionLostError(NetError):
    """The switch went away."""


def connect(cluster: str, network: str) -> socket.socket:
    """Return a connection to the switch of a network. Raises NetError."""
    path = naming.control_path(cluster, network)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_TIMEOUT)
    try:
        with naming.near(path) as short:
            connection.connect(short)
    except OSError as error:
        connection.close()
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            raise ConnectionLostError(
                f"network {cluster}/{network}: no switch runs; `hostd net ls` lists those that do"
            ) from None
        raise NetError(f"network {cluster}/{network}: {path}: {error.strerror}") from None
    return connection


class Talk:
    """What both clients know of their connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.hello: dict[str, Any] = {}
        """cluster, network, mtu, pid"""
        self._incoming = wire.Incoming(wire.ANSWER_LIMIT)
        self._waiting: list[dict[str, Any]] = []
        self._name = "switch"

    def fileno(self) -> int:
        """Return the connection's descriptor; it is readable when the switch is gone."""
        return self.connection.fileno()

    def close(self) -> None:
        """End the connection, and the ports and captures that it holds."""
        self.connection.close()

    def _feed(self, data: bytes) -> None:
        if not data:
            raise self._lost("it was closed at the other end")
        self._waiting += [received.message for received in self._incoming.feed(data)]

    def _greet(self, hello: dict[str, Any]) -> None:
        self.hello = self._result(hello)
        self._name = f"network {self.hello.get('cluster')}/{self.hello.get('network')}"
        if self.hello.get("version") != wire.VERSION:
            theirs = self.hello.get("version")
            raise NetError(f"{self._name}: its switch speaks version {theirs}, not {wire.VERSION}; use the same hostd")

    @staticmethod
    def _result(answer: dict[str, Any]) -> Any:
        if "error" in answer:
            raise NetError(str(answer["error"]))
        return answer.get("ok")

    def _lost(self, error: object) -> ConnectionLostError:
        return ConnectionLostError(f"{self._name}: the connection to its switch broke: {error}")

    def _silent(self, timeout: float | None) -> NetError:
        return NetError(f"{self._name}: its switch gave no answer in {timeout} s")


class Client(Talk):
    """A blocking client. Raises NetError if the switch did not come up, or as it says."""

    def __init__(self, connection: socket.socket, timeout: float = ANSWER_TIMEOUT) -> None:
        super().__init__(connection)
        try:
            self.connection.settimeout(timeout)
            self._greet(self._next(timeout))
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(cls, cluster: str, network: str) -> Self:
        """Connect to the switch of a network. Raises NetError."""
        return cls(connect(cluster, network))

    def call(self, request: Request, timeout: float | None = ANSWER_TIMEOUT) -> Any:
        """Ask, and return the answer. Raises NetError with the switch's own sentence, or when there is none in time."""
        data = wire.pack(request.fields, wire.REQUEST_LIMIT)
        try:
            self.connection.settimeout(timeout)
            sent = wire.send(self.connection, data, request.descriptors)
            if sent < len(data):
                self.connection.sendall(data[sent:])
        except TimeoutError:
            raise self._silent(timeout) from None
        except OSError as error:
            raise self._lost(error) from None
        return self._result(self._next(timeout))

    @property
    def alive(self) -> bool:
        """Whether the switch is still there; for between two calls."""
        try:
            self.connection.settimeout(0)
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _next(self, timeout: float | None) -> dict[str, Any]:
        while not self._waiting:
            try:
                self._feed(self.connection.recv(wire.CHUNK))
            except TimeoutError:
                self.close()  # An answer that comes later would be taken for the next one's.
                raise self._silent(timeout) from None
            except OSError as error:
                raise self._lost(error) from None
        return self._waiting.pop(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
