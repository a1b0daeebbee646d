"""A host process's side of joining a region by name."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Any

from shm import naming, wire
from shm.claims import End
from shm.errors import ShmError
from shm.layout import ChannelInfo, Layout

ANSWER_TIMEOUT = 10.0  # seconds


class Client:
    """A connection to the broker that serves a region: memory and bells when it joins, ends when it asks for them.

    As long as the connection lives, so do its ends. `fd` and `bells` are the caller's.
    """

    def __init__(self, name: str, *, readonly: bool) -> None:
        self._name = name
        self._lock = threading.Lock()
        self.fd = -1
        self.bells: list[int] = []
        self._connection = self._connect()
        try:
            self._join(readonly)
        except ShmError:
            self.close()
            wire.close([fd for fd in (self.fd, *self.bells) if fd >= 0])
            raise

    def _connect(self) -> socket.socket:
        path = naming.socket_path(self._name)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        connection.settimeout(ANSWER_TIMEOUT)
        try:
            # By the folder's descriptor: a socket's path may have 107 bytes only.
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{folder}/{path.name}")
            finally:
                os.close(folder)
        except OSError as error:
            connection.close()
            reason = "nobody serves it" if isinstance(error, ConnectionRefusedError) else error.strerror
            raise ShmError(
                f"region {self._name}: cannot be joined at {path}: {reason}; is its cluster running, as this user?"
            ) from None
        return connection

    def _join(self, readonly: bool) -> None:
        try:
            wire.send(self._connection, {"hello": wire.VERSION, "access": "ro" if readonly else "rw"})
            answer, [self.fd] = self._answer()
            told = answer["ok"]
            self.size = int(told["size"])
            infos: list[ChannelInfo] = []
            while len(infos) < told["channels"]:
                answer, _ = self._answer()
                infos += (ChannelInfo(**fields) for fields in answer["channels"])
            while len(self.bells) < told["bells"]:
                _, bells = self._answer()
                self.bells += bells
            self.layout = Layout(tuple(infos), int(told["data_offset"]), self.size, len(self.bells))
        except (OSError, KeyError, TypeError, ValueError, wire.WireError) as error:
            raise ShmError(f"region {self._name}: its owner does not answer as it should: {error}") from None

    def _answer(self) -> tuple[dict[str, Any], list[int]]:
        packet = wire.receive(self._connection)
        if packet is None:
            raise ShmError(f"region {self._name}: its owner ended")
        if "error" in packet[0]:
            wire.close(packet[1])
            raise ShmError(str(packet[0]["error"]))
        return packet

    def _ask(self, message: dict[str, Any]) -> Any:
        with self._lock:
            try:
                wire.send(self._connection, message)
                return self._answer()[0]["ok"]
            except (OSError, KeyError, wire.WireError) as error:
                raise ShmError(f"region {self._name}: its owner does not answer: {error}") from None

    def claim(self, channel: str, role: str, lane: int | None, holder: object) -> int:
        """Ask for an end; return its lane. Raises ShmError."""
        return int(self._ask({"attach": [channel, role, lane]}))

    def release(self, end: End, holder: object) -> bool:
        """Give an end back. An owner that is no more needs none."""
        with contextlib.suppress(ShmError):
            return bool(self._ask({"release": list(end)}))
        return False

    def close(self) -> None:
        """End the connection, and all that it held."""
        self._connection.close()
