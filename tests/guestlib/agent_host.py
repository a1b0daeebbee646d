"""The agent as an ordinary process, with a socket in place of the port, and a plain host's side of its protocol."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from guestlib.linux import protocol
from guestlib.linux.protocol import Type

LIMIT = 20.0  # seconds


class Agent:
    """A running agent; `root` is all it sees of files when it copies, `folder` stands for /run/hostd."""

    def __init__(self, binary: Path, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        folder.mkdir(exist_ok=True)
        root.mkdir(exist_ok=True)
        self.path = folder / "port.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=1:exitcode=77", "UBSAN_OPTIONS": "halt_on_error=1"}
        self.process = subprocess.Popen(
            ["agent", "-l", str(listener.fileno()), "-f", str(folder), "-r", str(root)],
            executable=binary,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        listener.close()

    def connect(self) -> socket.socket:
        """Return a new connection, as the port's host has it."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(LIMIT)
        connection.connect(str(self.path))
        return connection

    def host(self) -> Host:
        """Begin a session."""
        return Host(self.connect())

    def finish(self) -> str:
        """Stop the agent in good order; return what it said. Its result must be 0: no sanitizer spoke."""
        self.process.terminate()
        return self.ended(0)

    def ended(self, code: int) -> str:
        """Wait for the agent's end with `code`; return what it said."""
        output, _ = self.process.communicate(timeout=LIMIT)
        text = output.decode(errors="replace")
        assert self.process.returncode == code, text
        return text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


class Host:
    """A session, one frame at a time."""

    def __init__(self, connection: socket.socket, session: int = 0x5EED, begin: bool = True) -> None:
        self.connection = connection
        self.session = session
        self.bytes = b""
        if begin:
            self.begin()

    def begin(self, version: int = protocol.VERSION) -> None:
        """Say HELLO and skip to this session's WELCOME."""
        hello = protocol.HELLO.pack(version, self.session)
        self.connection.sendall(protocol.SYNC + protocol.frame(self.session, Type.HELLO, 0, hello))
        while True:
            while protocol.SYNC not in self.bytes:
                self._more()
            self.bytes = self.bytes.partition(protocol.SYNC)[2]
            while len(self.bytes) < protocol.FRAME.size:
                self._more()
            length, stream, kind = protocol.FRAME.unpack_from(self.bytes)
            end = protocol.FRAME.size + length + protocol.MARK.size
            while kind == Type.WELCOME and length < 1024 and len(self.bytes) < end:
                self._more()
            if kind == Type.WELCOME and self.bytes[end - 4 : end] == protocol.MARK.pack(self.session):
                payload = self.receive()[2]
                break
        assert stream == 0
        self.version, self.flags = protocol.WELCOME.unpack_from(payload)
        self.names = payload[protocol.WELCOME.size :].split(b"\0")[:-1]

    def _more(self) -> None:
        got = self.connection.recv(1 << 16)
        if not got:
            raise EOFError("the agent hung up")
        self.bytes += got

    def receive(self) -> tuple[Type, int, bytes]:
        """Return the next frame: type, stream, payload."""
        while len(self.bytes) < protocol.FRAME.size:
            self._more()
        length, stream, kind = protocol.FRAME.unpack_from(self.bytes)
        assert length <= protocol.MAX_PAYLOAD
        end = protocol.FRAME.size + length
        while len(self.bytes) < end + 4:
            self._more()
        payload, mark = self.bytes[protocol.FRAME.size : end], self.bytes[end : end + 4]
        assert struct.unpack("<I", mark) == (self.session,), "a frame of another session"
        self.bytes = self.bytes[end + 4 :]
        return Type(kind), stream, payload

    def send(self, kind: Type, stream: int = 0, payload: bytes = b"") -> None:
        """Send one frame."""
        self.connection.sendall(protocol.frame(self.session, kind, stream, payload))

    def exec(
        self,
        stream: int,
        *argv: str,
        flags: int = 0,
        size: tuple[int, int] = (24, 80),
        cwd: str = "",
        env: tuple[str, ...] = (),
    ) -> None:
        """Start a command."""
        head = protocol.EXEC.pack(flags, *size, 0, 0, len(argv), len(env))
        self.send(Type.EXEC, stream, head + protocol.strings(cwd, *argv, *env))

    def frames(self, until: set[Type], stream: int | None = None) -> Iterator[tuple[Type, int, bytes]]:
        """Give frames up to one of the types `until` (on `stream`), that one included; credit returned for all data."""
        while True:
            kind, number, payload = self.receive()
            if kind in (Type.DATA, Type.STDOUT, Type.STDERR) and payload:
                self.send(Type.CREDIT, number, protocol.U32.pack(len(payload)))
            yield kind, number, payload
            if kind in until and stream in (None, number):
                return

    def last(self, until: set[Type], stream: int | None = None) -> tuple[Type, int, bytes]:
        """Return the frame that ends `frames`."""
        return list(self.frames(until, stream))[-1]

    def outcome(self, stream: int) -> tuple[int, bytes, bytes]:
        """Return status, standard output and standard error of a command, waiting for its end."""
        found = {Type.STDOUT: b"", Type.STDERR: b""}
        for kind, number, payload in self.frames({Type.EXIT, Type.ERROR}, stream):
            if number == stream and kind in found:
                found[kind] += payload
        assert kind == Type.EXIT, payload
        return protocol.EXIT.unpack(payload)[0], found[Type.STDOUT], found[Type.STDERR]

    def error(self, stream: int) -> tuple[int, str]:
        """Return code and text of the ERROR that ends `stream`."""
        for kind, number, payload in self.frames({Type.ERROR}, stream):
            assert number != stream or kind in (Type.ERROR, Type.DATA, Type.CREDIT), (kind, payload)
        return protocol.ERROR.unpack_from(payload)[0], payload[4:].decode()

    def close(self) -> None:
        self.connection.close()


def record(kind: int, path: str, content: bytes = b"", *, mode: int = 0o644, target: str = "", size: int = -1) -> bytes:
    """Return one record of a copy."""
    names = path.encode(errors="surrogateescape"), target.encode()
    length = len(content) if size < 0 else size
    head = protocol.RECORD.pack(kind, mode, 0, 0, 1_600_000_000_000_000_000, length, len(names[0]), len(names[1]))
    return head + b"".join(names) + content
