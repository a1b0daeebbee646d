"""The asking side: a plain blocking client for a supervisor's control socket."""

from __future__ import annotations

import os
import socket
from types import TracebackType
from typing import Any

from hostd.control.framing import REQUEST_LIMIT, FrameError, FrameReader, Message, pack_frame

VERSION = 1
"""version of the control protocol"""
CONNECT_TIMEOUT = 5.0


class ControlError(Exception):
    """A request that was refused or could not be made; one sentence."""


class ConnectionLostError(ControlError):
    """The supervisor went away before it answered."""


class Client:
    """A connection to the supervisor that listens at `path`.

    Raises OSError when nobody listens there, ControlError when what listens speaks another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._frames = FrameReader()
        self._waiting: list[Message] = []
        self._number = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(CONNECT_TIMEOUT)
            self._socket.connect(os.fspath(path))
            self.hello = self._next()
            if self.hello.get("hello") != VERSION:
                theirs = self.hello.get("hello")
                raise ControlError(f"the supervisor speaks version {theirs} of the control protocol, not {VERSION}")
        except BaseException:
            self._socket.close()
            raise

    def call(self, name: str, *, timeout: float | None = 30.0, **arguments: object) -> Any:
        """Ask the supervisor and return its answer, waiting at most `timeout` seconds (None: for ever).

        Raises ControlError with the supervisor's own sentence, or when it doesn't answer.
        """
        self.ask(name, timeout=timeout, **arguments)
        return self.answer(name, timeout=timeout)

    def ask(self, name: str, *, timeout: float | None = 30.0, **arguments: object) -> None:
        """Send a request and do not wait for its answer, which `answer` gives. Raises ControlError."""
        self._number += 1
        request = {"v": VERSION, "id": self._number, "call": name, "args": arguments}
        self._socket.settimeout(timeout)
        try:
            self._socket.sendall(pack_frame(request, REQUEST_LIMIT))
        except (OSError, FrameError) as error:
            raise ConnectionLostError(f"{name}: the connection to the supervisor broke: {error}") from error

    def answer(self, name: str, *, timeout: float | None = 30.0) -> Any:
        """Return the answer to the last request, which was `name`. Raises as `call` does."""
        self._socket.settimeout(timeout)
        try:
            answer = self._next()
            while answer.get("id") not in (self._number, None):
                answer = self._next()
        except TimeoutError:
            raise ControlError(f"{name}: the supervisor gave no answer in {timeout} s") from None
        except (OSError, FrameError) as error:
            raise ConnectionLostError(f"{name}: the connection to the supervisor broke: {error}") from error
        if "error" in answer:
            raise ControlError(str(answer["error"]))
        return answer.get("ok")

    def _next(self) -> Message:
        while not self._waiting:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("it was closed at the other end")
            self._waiting += self._frames.feed(data)
        return self._waiting.pop(0)

    def detach(self) -> socket.socket:
        """Return the connection's socket, after a call that made it something else; the caller closes it."""
        return self._socket.dup()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
