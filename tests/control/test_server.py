"""The control socket: calls, and clients that misbehave while others go on."""

from __future__ import annotations

import asyncio
import pathlib
import shutil
import socket
import stat
import struct
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from hostd.control import server as server_module
from hostd.control.client import VERSION, Client, ControlError
from hostd.control.framing import FrameReader, pack_frame
from hostd.control.server import RequestError, Server, Stream


async def echo(arguments: Mapping[str, Any]) -> object:
    return dict(arguments)


async def refuse(_arguments: Mapping[str, Any]) -> object:
    raise RequestError("guest x: is asleep")


async def huge(_arguments: Mapping[str, Any]) -> object:
    return bytes(17 << 20)


async def strict(arguments: Mapping[str, Any]) -> object:
    return arguments["needed"]


async def upper(_arguments: Mapping[str, Any]) -> Stream:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data.upper())
            await writer.drain()

    return Stream({"then": "bytes"}, carry)


CALLS = {"echo": echo, "refuse": refuse, "huge": huge, "strict": strict, "upper": upper}


@pytest.fixture
def listening() -> Iterator[pathlib.Path]:
    """A server in a thread of its own; its socket's path (short: a Unix socket's is limited)."""
    folder = tempfile.mkdtemp(prefix="hc")
    path = pathlib.Path(folder, "control.sock")
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        server = Server(path, {"cluster": "test"}, CALLS)
        await server.start()
        ready.set()
        await stop.wait()
        await server.close()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield path
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    assert not thread.is_alive()
    loop.close()
    assert not path.exists()
    shutil.rmtree(folder)


def raw(path: pathlib.Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(10)
    link.connect(str(path))
    assert b"hello" in link.recv(4096)
    return link


def answers(link: socket.socket) -> list[dict[str, Any]]:
    """Everything the server sends until it closes."""
    frames, messages = FrameReader(), []
    while data := link.recv(65536):
        messages += frames.feed(data)
    return messages


def test_calls_and_refusals(listening: pathlib.Path) -> None:
    assert stat.S_IMODE(listening.stat().st_mode) == 0o600
    with Client(listening) as client:
        assert client.hello == {"hello": VERSION, "cluster": "test"}
        assert client.call("echo", a=1, b=[b"x"]) == {"a": 1, "b": [b"x"]}
        with pytest.raises(ControlError, match="guest x: is asleep"):
            client.call("refuse")
        with pytest.raises(ControlError, match="there is no call 'nothing'"):
            client.call("nothing")
        with pytest.raises(ControlError, match="strict: wrong arguments"):
            client.call("strict")
        with pytest.raises(ControlError, match="larger than the limit"):
            client.call("huge")
        assert client.call("echo", still="there") == {"still": "there"}


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", 3) + b"\xc1\xc1\xc1",
        struct.pack("<I", 100_000_000) + bytes(1000),
        b"\xff" * 4096,
    ],
    ids=["http", "no msgpack", "100 MB", "ones"],
)
def test_garbage_gets_one_error_and_hurts_nobody(listening: pathlib.Path, sent: bytes) -> None:
    with Client(listening) as other, raw(listening) as link:
        link.sendall(sent)
        [answer] = answers(link)
        assert answer["id"] is None
        assert answer["error"].startswith("control: a frame")
        assert other.call("echo", n=1) == {"n": 1}


def test_100_megabytes_are_not_taken(listening: pathlib.Path) -> None:
    with Client(listening) as other, raw(listening) as link:
        link.sendall(struct.pack("<I", 100_000_000))
        with pytest.raises(OSError, match=r"[Bb]roken pipe|reset"):
            link.sendall(bytes(100_000_000))
        assert other.call("echo", n=2) == {"n": 2}


def test_half_a_message_is_given_up(listening: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "FRAME_TIMEOUT", 0.1)
    frame = pack_frame({"v": VERSION, "id": 1, "call": "echo", "args": {}})
    with Client(listening) as other, raw(listening) as link:
        link.sendall(frame[:-2])
        assert other.call("echo", n=3) == {"n": 3}
        assert answers(link) == []
    with raw(listening) as link:
        link.sendall(frame[:5])
    with Client(listening) as other:
        assert other.call("echo", n=4) == {"n": 4}


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"v": 99, "id": 7, "call": "echo"}, "version 99 is not spoken here"),
        ({"id": 7, "call": "echo"}, "version None is not spoken here"),
        ({"v": VERSION, "id": 7, "call": ["echo"]}, "there is no call"),
        ({"v": VERSION, "id": 7, "call": "echo", "args": [1]}, "args is no map"),
    ],
)
def test_requests_that_make_no_sense(listening: pathlib.Path, request_: dict[str, Any], sentence: str) -> None:
    with raw(listening) as link:
        link.sendall(pack_frame(request_))
        [answer] = FrameReader().feed(link.recv(4096))
        assert answer["id"] == 7
        assert sentence in answer["error"]


def test_too_many_connections_are_turned_away(listening: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTION_LIMIT", 2)
    with raw(listening), raw(listening), socket.socket(socket.AF_UNIX) as third:
        third.settimeout(10)
        third.connect(str(listening))
        [answer] = answers(third)
        assert "more than 2 connections" in answer["error"]


def test_a_call_may_make_its_connection_a_stream(listening: pathlib.Path) -> None:
    with Client(listening) as client, Client(listening) as other:
        assert client.call("upper") == {"then": "bytes"}
        with client.detach() as link:
            client.close()
            link.settimeout(10)
            for word in (b"one", b"two"):
                link.sendall(word)
                assert link.recv(100) == word.upper()
            assert other.call("echo", a=1) == {"a": 1}
            link.shutdown(socket.SHUT_WR)
            assert link.recv(100) == b""
