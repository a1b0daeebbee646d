"""The supervisor's link to an agent: sessions that begin anew, the command's status, and agents that are hostile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from guestlib.linux import protocol
from guestlib.linux.protocol import Shutdown, Type, WelcomeFlag, frame, strings
from hostd.agent import link as link_module
from hostd.agent.link import AgentError, AgentLink
from hostd.agent.terminal import collect

LIMIT = 20.0


class FakeAgent:
    """The far end of the port: one session at a time, said what a test likes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hellos = 0
        self.session = 0
        self._sessions: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def listen(self) -> asyncio.Server:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._sessions.put_nowait((reader, writer))

        return await asyncio.start_unix_server(accept, os.fspath(self.path))

    async def connected(self) -> None:
        """Take the next connection."""
        self.reader, self.writer = await asyncio.wait_for(self._sessions.get(), LIMIT)

    async def welcome(self, flags: int = 0) -> None:
        """Take the next connection and its HELLO, and begin the session."""
        await self.connected()
        await self.hello()
        self.say_welcome(flags)

    async def hello(self) -> None:
        last = b""
        while not last.endswith(protocol.SYNC):
            last = last[-len(protocol.SYNC) :] + await self.reader.readexactly(1)
        kind, _, payload = await self.receive()
        assert kind == Type.HELLO
        version, self.session = protocol.HELLO.unpack(payload)
        assert version == protocol.VERSION
        self.hellos += 1

    def say_welcome(self, flags: int = 0) -> None:
        payload = protocol.WELCOME.pack(protocol.VERSION, flags) + strings("a", "c", "6.1")
        self.writer.write(protocol.SYNC + frame(self.session, Type.WELCOME, 0, payload))

    async def receive(self) -> tuple[Type, int, bytes]:
        length, stream, kind = protocol.FRAME.unpack(await self.reader.readexactly(protocol.FRAME.size))
        payload = await self.reader.readexactly(length)
        await self.reader.readexactly(protocol.MARK.size)
        return Type(kind), stream, payload

    def send(self, kind: int, stream: int = 0, payload: bytes = b"") -> None:
        self.writer.write(protocol.FRAME.pack(len(payload), stream, kind) + payload + protocol.MARK.pack(self.session))


def run(test: Callable[[FakeAgent, AgentLink], Awaitable[None]]) -> None:
    """Do `test` with an agent and the link to it."""

    async def work() -> None:
        with tempfile.TemporaryDirectory(prefix="hl") as folder:
            agent = FakeAgent(Path(folder, "agent.sock"))
            server = await agent.listen()
            link = AgentLink(agent.path, "guest a")
            try:
                async with asyncio.timeout(LIMIT):
                    await test(agent, link)
            finally:
                await link.close()
                server.close()

    asyncio.run(work())


def test_a_session_tells_what_the_guest_is() -> None:
    async def test(agent: FakeAgent, link: AgentLink) -> None:
        assert not link.up
        await agent.welcome(WelcomeFlag.IS_INIT)
        await link.wait_up(LIMIT)
        assert (link.flags, link.version, link.result) == (WelcomeFlag.IS_INIT, "6.1", None)

    run(test)


def test_a_clone_answers_only_once_it_is_itself() -> None:
    async def test(agent: FakeAgent, _: AgentLink) -> None:
        link = AgentLink(agent.path, "guest b", lambda: b"who it is")
        try:
            await agent.connected()  # The other link's.
            await agent.welcome()
            assert await agent.receive() == (Type.BECOME, 0, b"who it is")
            agent.send(Type.PING, 0, b"?")
            assert not link.up
            agent.send(Type.BECAME)
            await link.wait_up(LIMIT)
            assert await agent.receive() == (Type.PONG, 0, b"?")
            agent.writer.close()
            await agent.welcome()
            await link.wait_up(LIMIT)  # The same guest still: it isn't told twice.
        finally:
            await link.close()

    run(test)


def test_what_an_earlier_session_left_is_passed_over() -> None:
    async def test(agent: FakeAgent, link: AgentLink) -> None:
        await agent.connected()
        await agent.hello()
        agent.writer.write(os.urandom(100_000) + protocol.SYNC + b"no frame" * 30_000 + protocol.SYNC)
        agent.writer.write(frame(agent.session + 1, Type.WELCOME, 0, protocol.WELCOME.pack(1, 0)))
        await agent.hello()  # The flush between them is no hello.
        agent.say_welcome()
        await link.wait_up(LIMIT)
        assert agent.hellos == 2

    run(test)


def test_a_guest_that_takes_nothing_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "ANSWER_LIMIT", 0.01)

    async def test(agent: FakeAgent, link: AgentLink) -> None:
        await agent.connected()
        agent.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(1.5)
        writer: Any = link._writer
        assert writer.transport.get_write_buffer_size() <= len(link_module.FLUSH) + 100
        with pytest.raises(AgentError, match=r"guest a: its agent does not answer"):
            await link.wait_up(0.01)

    run(test)


def test_a_session_that_breaks_off_begins_anew() -> None:
    async def test(agent: FakeAgent, link: AgentLink) -> None:
        await agent.welcome()
        await link.wait_up(LIMIT)
        stream = await link.exec(["true"])
        assert (await agent.receive())[0] == Type.EXEC
        agent.send(Type.STDOUT, stream.number, b"before")
        agent.writer.close()
        assert await stream.receive() == (Type.STDOUT, b"before")
        with pytest.raises(AgentError, match="the connection to its agent was lost"):
            await stream.receive()
        with pytest.raises(AgentError, match="its agent does not answer"):
            await link.exec(["true"])
        await agent.welcome()
        await link.wait_up(LIMIT)
        assert (await link.exec(["true"])).number != stream.number

    run(test)


def test_the_command_s_status_is_kept_and_taken() -> None:
    async def test(agent: FakeAgent, link: AgentLink) -> None:
        await agent.welcome(WelcomeFlag.HAS_COMMAND)
        agent.send(Type.RESULT, 0, protocol.EXIT.pack(3, 0))
        assert (await agent.receive())[0] == Type.RESULT_TAKEN
        assert link.result == 3
        agent.writer.close()
        await agent.welcome()
        assert link.result == 3

    run(test)


def test_a_shutdown_is_asked_for() -> None:
    async def test(agent: FakeAgent, link: AgentLink) -> None:
        await agent.welcome()
        await link.wait_up(LIMIT)
        await link.shutdown(Shutdown.REBOOT, 1.5)
        assert await agent.receive() == (Type.SHUTDOWN, 0, protocol.SHUTDOWN.pack(Shutdown.REBOOT, 1500))

    run(test)


def test_bytes_are_sent_only_as_they_are_taken() -> None:
    async def test(agent: FakeAgent, link: AgentLink) -> None:
        await agent.welcome()
        await link.wait_up(LIMIT)
        stream = await link.exec(["cat"])
        data = os.urandom(protocol.WINDOW + 100_000)
        collecting = asyncio.ensure_future(collect(stream, data))
        assert (await agent.receive())[0] == Type.EXEC
        got = b""
        while len(got) < protocol.WINDOW:
            got += (await agent.receive())[2]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                got += (await agent.receive())[2]
        assert len(got) == protocol.WINDOW
        agent.send(Type.CREDIT, stream.number, protocol.U32.pack(1 << 20))
        while len(got) < len(data):
            got += (await agent.receive())[2]
        assert got == data
        assert (await agent.receive())[0] == Type.EOF
        agent.send(Type.STDERR, stream.number, b"e")
        assert await agent.receive() == (Type.CREDIT, stream.number, protocol.U32.pack(1))
        agent.send(Type.EXIT, stream.number, protocol.EXIT.pack(4, 0))
        assert await collecting == (4, b"", b"e")

    run(test)


@pytest.mark.parametrize(
    "say",
    [
        lambda agent, number: agent.send(99),
        lambda agent, number: agent.writer.write(protocol.FRAME.pack(1 << 31, 0, Type.PING)),
        lambda agent, number: agent.writer.write(frame(agent.session + 1, Type.PING)),
        lambda agent, number: agent.send(Type.RESULT, 0, b"x"),
        lambda agent, number: agent.send(Type.ERROR, 0, b""),
        lambda agent, number: agent.send(Type.CREDIT, number, b"x"),
        lambda agent, number: agent.send(Type.SIGNAL, number, b"1234"),
        lambda agent, number: [agent.send(Type.STARTED, number, b"1234") for _ in range(2)],
        lambda agent, number: [agent.send(Type.STDOUT, number, bytes(protocol.MAX_PAYLOAD)) for _ in range(5)],
        lambda agent, number: agent.writer.close(),
    ],
)
def test_an_agent_that_says_what_cannot_be_loses_its_session_and_no_more(say: Callable[[FakeAgent, int], Any]) -> None:
    async def test(agent: FakeAgent, link: AgentLink) -> None:
        await agent.welcome()
        await link.wait_up(LIMIT)
        stream = await link.exec(["true"])
        say(agent, stream.number)
        await agent.welcome()
        await link.wait_up(LIMIT)
        assert stream.ended
        with pytest.raises(AgentError, match="the connection to its agent was lost"):
            await asyncio.gather(*(stream.receive() for _ in range(5)))
        agent.send(Type.RESULT, 0, protocol.EXIT.pack(0, 0))
        while (await agent.receive())[0] != Type.RESULT_TAKEN:
            pass
        assert link.result == 0

    run(test)


def test_frames_of_no_stream_are_dropped_and_pings_answered() -> None:
    async def test(agent: FakeAgent, link: AgentLink) -> None:
        await agent.welcome()
        agent.send(Type.STDOUT, 77, b"late")
        agent.send(Type.EXIT, 77, protocol.EXIT.pack(0, 0))
        agent.send(Type.PING, 0, b"there?")
        assert await agent.receive() == (Type.PONG, 0, b"there?")
        assert link.up

    run(test)
