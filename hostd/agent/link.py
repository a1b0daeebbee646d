"""One session with an agent: streams multiplexed over its port, each with its own windows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from guestlib.linux import protocol
from guestlib.linux.protocol import ExecFlag, Shutdown, Type, WelcomeFlag, frame, strings

RETRY = 0.1
ANSWER_LIMIT = 1.0
"""seconds after which a HELLO is taken for lost"""
FLUSH = bytes(65_600)
"""zeros that end any half frame of an earlier session"""
CARRYING = (Type.DATA, Type.STDOUT, Type.STDERR)
ENDING = (Type.EXIT, Type.DONE, Type.ERROR)
ONCE = (Type.STARTED, Type.EOF, *ENDING)
CREDIT_LIMIT = 1 << 31


class AgentError(Exception):
    """The agent refused or is not there; one sentence."""

    def __init__(self, sentence: str, code: int = 0) -> None:
        super().__init__(sentence)
        self.code = code
        """the guest's errno, or 0"""


def exec_payload(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    terminal: tuple[int, int] | None = None,
    stdin: bool = True,
    clean: bool = False,
) -> bytes:
    """Return the payload of EXEC: a command with a `terminal` of so many rows and columns, or with pipes."""
    flags = ExecFlag(0)
    flags |= ExecFlag.TTY if terminal else 0
    flags |= ExecFlag.CLEAN_ENV if clean else 0
    flags |= ExecFlag.NO_STDIN if not stdin else 0
    variables = [f"{name}={value}" for name, value in (env or {}).items()]
    for text in (cwd, *argv, *variables):
        if "\0" in text:
            raise AgentError(f"{text!r} holds a zero byte, which no command can be given")
    if len(argv) > 0xFFFF or len(variables) > 0xFFFF:
        raise AgentError(f"{len(argv)} arguments and {len(variables)} variables are too many")
    head = protocol.EXEC.pack(flags, *(terminal or (0, 0)), 0, 0, len(argv), len(variables))
    payload = head + b"".join(strings(text.encode(errors="surrogateescape")) for text in (cwd, *argv, *variables))
    if len(payload) > protocol.MAX_PAYLOAD:
        raise AgentError(f"{len(payload)} bytes of arguments and environment are more than {protocol.MAX_PAYLOAD}")
    return payload


class Stream:
    """One command or copy. `receive` gives its frames; bytes are only sent as fast as the guest takes them."""

    def __init__(self, link: AgentLink, number: int) -> None:
        self._link = link
        self.number = number
        self._frames: deque[tuple[Type, bytes]] = deque()
        self._arrived = asyncio.Event()
        self._credit = protocol.WINDOW
        self._granted = protocol.WINDOW
        self._seen: set[Type] = set()
        self._room = asyncio.Event()
        self._room.set()
        self.ended = False

    async def send(self, data: bytes) -> None:
        """Send bytes of standard input, or of a copy. Once the stream has ended they go nowhere."""
        view = memoryview(data)
        while view and not self.ended:
            if self._credit == 0:
                self._room.clear()
                await self._room.wait()
                continue
            size = min(len(view), self._credit, protocol.MAX_PAYLOAD)
            self._credit -= size
            await self._link.send(Type.DATA, self.number, bytes(view[:size]))
            view = view[size:]

    async def control(self, kind: Type, payload: bytes = b"") -> None:
        """Send EOF, SIGNAL, RESIZE or CANCEL, unless the stream has ended."""
        if not self.ended:
            await self._link.send(kind, self.number, payload)

    async def receive(self) -> tuple[Type, bytes]:
        """Return the next frame; after one of ENDING there is none. Raises AgentError when the session broke off."""
        while not self._frames:
            if self.ended:
                raise AgentError(f"{self._link.name}: the connection to its agent was lost{self._link.complaint}")
            self._arrived.clear()
            await self._arrived.wait()
        kind, payload = self._frames.popleft()
        if kind in CARRYING and not self.ended:
            self._granted += len(payload)
            with contextlib.suppress(AgentError):  # What has arrived is still to be had.
                await self._link.send(Type.CREDIT, self.number, protocol.U32.pack(len(payload)))
        return kind, payload

    def take(self, kind: Type, payload: bytes) -> None:
        """Take a frame of the session. Raises ValueError for more than was granted, and for what is out of turn."""
        if kind == Type.CREDIT:
            self._credit = min(self._credit + protocol.U32.unpack(payload)[0], CREDIT_LIMIT)
            self._room.set()
            return
        if kind in CARRYING:
            self._granted -= len(payload)
            if self._granted < 0:
                raise ValueError("the guest sends more than it was granted")
            if not payload:
                return
        elif kind not in ONCE or kind in self._seen:
            raise ValueError(f"a frame of type {kind} is out of turn")
        self._seen.add(kind)
        self._frames.append((kind, payload))
        if kind in ENDING:
            self.end()
        self._arrived.set()

    def end(self) -> None:
        self.ended = True
        self._room.set()
        self._arrived.set()


class AgentLink:
    """The connection to the agent behind the Unix socket `path`, begun anew whenever it breaks off, until `close`."""

    def __init__(self, path: str | os.PathLike[str], name: str, become: Callable[[], bytes] | None = None) -> None:
        """`become` gives the payload of BECOME for a guest that goes on from a template: it answers as that, or not."""
        self.name = name
        self._become = become
        self._path = os.fspath(path)
        self._streams: dict[int, Stream] = {}
        self._number = 0
        self._session = 0
        self._writer: asyncio.StreamWriter | None = None
        self._up = asyncio.Event()
        self._result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.complaint = ""
        """why the agent ended a session, if it said so"""
        self.flags = WelcomeFlag(0)
        self.version = ""
        """of the guest's kernel"""
        self._task = asyncio.get_running_loop().create_task(self._serve())

    @property
    def up(self) -> bool:
        """Whether the agent answers."""
        return self._up.is_set()

    @property
    def result(self) -> int | None:
        """The status of the guest's own command, once it has ended and the agent said so."""
        return self._result.result() if self._result.done() and not self._result.cancelled() else None

    async def wait_up(self, timeout: float) -> None:
        """Wait until the agent answers. Raises AgentError."""
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError:
            raise AgentError(
                f"{self.name}: its agent does not answer; it may still be starting (`hostd logs`), "
                "or its initramfs has no hostd agent"
            ) from None

    async def close(self) -> None:
        """End the session; what its commands do then is in docs/agent-protocol.md."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    # --- what can be asked ---------------------------------------------------------------------------------------

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        terminal: tuple[int, int] | None = None,
        stdin: bool = True,
        clean: bool = False,
    ) -> Stream:
        """Start a command, with a `terminal` of so many rows and columns or with pipes. Raises AgentError."""
        payload = exec_payload(argv, env=env, cwd=cwd, terminal=terminal, stdin=stdin, clean=clean)
        return await self.open(Type.EXEC, payload)

    async def shutdown(self, how: Shutdown = Shutdown.POWER_OFF, grace: float = 5.0) -> None:
        """Ask the guest to end in good order: processes have `grace` seconds."""
        await self.send(Type.SHUTDOWN, 0, protocol.SHUTDOWN.pack(how, round(grace * 1000)))

    async def open(self, kind: Type, payload: bytes) -> Stream:
        """Open a stream by EXEC, PUT or GET. Raises AgentError."""
        if len(payload) > protocol.MAX_PAYLOAD:
            raise AgentError(f"{self.name}: {len(payload)} bytes of arguments and environment are too many")
        if len(self._streams) >= protocol.MAX_STREAMS:
            raise AgentError(f"{self.name}: {protocol.MAX_STREAMS} commands and copies at once are all it takes")
        self._number = self._number % 0x7FFF_FFFF + 1
        stream = self._streams[self._number] = Stream(self, self._number)
        await self.send(kind, self._number, payload)
        return stream

    async def send(self, kind: Type, stream: int = 0, payload: bytes = b"") -> None:
        """Send a frame; waits while the port is full. Raises AgentError when there is no session."""
        writer = self._writer
        if writer is None or not self.up:
            raise AgentError(f"{self.name}: its agent does not answer")
        writer.write(frame(self._session, kind, stream, payload))
        with contextlib.suppress(ConnectionError):  # The reader sees the end.
            await writer.drain()

    # --- the session ---------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            try:
                reader, self._writer = await self._connect()
            except OSError:
                await asyncio.sleep(RETRY)
                continue
            try:
                await self._greet(reader, self._writer)
                waiting = await self._call_it(reader, self._writer)
                self._up.set()
                for said in waiting:
                    await self._take(*said)
                while True:
                    await self._take(*await self._frame(reader))
            except (OSError, EOFError, ValueError, struct.error, AgentError):
                await asyncio.sleep(RETRY)
            finally:
                self._up.clear()
                self._writer.close()
                self._writer = None
                streams, self._streams = self._streams, {}
                for stream in streams.values():
                    stream.end()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self._path)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say HELLO until this very session is welcomed."""
        flush = b""
        while True:
            # Where nobody takes the bytes, as in a guest that boots, the last HELLO is still to come.
            if not writer.transport.get_write_buffer_size():
                # A number of its own each time: only the answer to the last HELLO begins a session.
                (self._session,) = protocol.U32.unpack(os.urandom(protocol.U32.size))
                hello = protocol.HELLO.pack(protocol.VERSION, self._session)
                writer.write(flush + protocol.SYNC + frame(self._session, Type.HELLO, 0, hello))
            try:
                async with asyncio.timeout(ANSWER_LIMIT):
                    await writer.drain()
                    while True:
                        await _skip(reader)
                        with contextlib.suppress(ValueError):  # An earlier session's.
                            kind, _, payload = await self._frame(reader)
                            if kind == Type.WELCOME:
                                self._welcome(payload)
                                return
            except TimeoutError:
                flush = FLUSH

    async def _call_it(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> list[tuple[Type, int, bytes]]:
        """Tell a clone who it is, once, and wait until it is that; return what it said meanwhile."""
        waiting: list[tuple[Type, int, bytes]] = []
        if self._become is None:
            return waiting
        payload = self._become()
        if len(payload) > protocol.MAX_PAYLOAD:
            self.complaint = f": it has {len(payload)} bytes of names and addresses, and takes {protocol.MAX_PAYLOAD}"
            raise AgentError(f"{self.name}{self.complaint}")
        writer.write(frame(self._session, Type.BECOME, 0, payload))
        while (said := await self._frame(reader))[0] != Type.BECAME:
            waiting.append(said)
        self._become = None
        return waiting

    def _welcome(self, payload: bytes) -> None:
        version, flags = protocol.WELCOME.unpack_from(payload)
        if version != protocol.VERSION:
            raise ValueError(f"the agent speaks version {version}")
        self.flags = WelcomeFlag(flags)
        names = payload[protocol.WELCOME.size :].split(b"\0")
        self.version = names[2].decode(errors="replace") if len(names) > 2 else ""

    async def _frame(self, reader: asyncio.StreamReader) -> tuple[Type, int, bytes]:
        length, stream, kind = protocol.FRAME.unpack(await reader.readexactly(protocol.FRAME.size))
        if length > protocol.MAX_PAYLOAD:
            raise ValueError("a frame is too long")
        payload = await reader.readexactly(length + protocol.MARK.size)
        if protocol.MARK.unpack_from(payload, length)[0] != self._session:
            raise ValueError("a frame is of another session")
        return Type(kind), stream, payload[:length]

    async def _take(self, kind: Type, number: int, payload: bytes) -> None:
        if kind == Type.RESULT:
            if not self._result.done():
                self._result.set_result(protocol.EXIT.unpack_from(payload)[0])
            await self.send(Type.RESULT_TAKEN)
        elif kind == Type.PING:
            await self.send(Type.PONG, 0, payload)
        elif kind == Type.ERROR and not number:
            self.complaint = f": {error_of(payload)}"
        elif number:
            stream = self._streams.get(number)
            if stream is not None:
                stream.take(kind, payload)
                if stream.ended:
                    del self._streams[number]


async def _skip(reader: asyncio.StreamReader) -> None:
    """Read up to where a session may begin."""
    while True:
        try:
            await reader.readuntil(protocol.SYNC)
            return
        except asyncio.LimitOverrunError as error:
            await reader.readexactly(error.consumed)


def error_of(payload: bytes) -> AgentError:
    """Return what an ERROR frame says."""
    code = protocol.ERROR.unpack_from(payload)[0]
    return AgentError(payload[protocol.ERROR.size :].rstrip(b"\0").decode(errors="replace"), code)


def status_of(payload: bytes) -> int:
    """Return the exit status that an EXIT frame says."""
    status: int = protocol.EXIT.unpack(payload)[0]
    return status
