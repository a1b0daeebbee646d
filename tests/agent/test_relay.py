"""The supervisor between a client and an agent: clients that misbehave cost others nothing."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

import pytest
from office import LIMIT, Agent, Office  # type: ignore[import-not-found]

from guestlib.linux import protocol
from guestlib.linux.protocol import Type
from hostd.agent.link import AgentError, exec_payload
from hostd.agent.remote import pack
from hostd.control.client import Client, ControlError
from hostd.host import BackgroundCluster, Guest

PUT = protocol.COPY.pack(0) + protocol.strings("/f", "f")
SLEEP = exec_payload(["sleep", "1000"])


def stream(office: Office) -> socket.socket:
    """Return a connection that carries a stream of the guest a."""
    with Client(office.directory.control) as client:
        assert set(client.call("agent", guest="a", wait=LIMIT)) == {"kernel"}
        link = client.detach()
    link.settimeout(LIMIT)
    return link


def last(link: socket.socket) -> tuple[Type, bytes]:
    """Return the frame that ends a stream; nothing follows it."""
    data = b""
    link.shutdown(socket.SHUT_WR)
    while more := link.recv(1 << 16):
        data += more
    while True:
        length, _, kind = protocol.FRAME.unpack_from(data)
        payload, data = data[protocol.FRAME.size :][:length], data[protocol.FRAME.size + length :]
        if not data:
            return Type(kind), payload


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        (pack(Type.SHUTDOWN, protocol.SHUTDOWN.pack(0, 0)), "a stream begins with EXEC, PUT or GET"),
        (pack(Type.HELLO), "a stream begins with EXEC, PUT or GET"),
        (struct.pack("<IIB3x", 1 << 20, 0, Type.EXEC), "is longer than 65536"),
        (struct.pack("<IIB3x", 0, 0, 200), "200 is not a valid Type"),
        (pack(Type.EXEC, SLEEP) + pack(Type.EXEC, SLEEP), "is not for this stream"),
        (pack(Type.EXEC, SLEEP) + pack(Type.SIGNAL, b"123"), "is not for this stream"),
        (pack(Type.EXEC, SLEEP) + pack(Type.CREDIT, protocol.U32.pack(0xFFFFFFFF)), "is not for this stream"),
        (pack(Type.PUT, PUT) + pack(Type.SIGNAL, protocol.U32.pack(15)), "is not for this stream"),
        (pack(Type.GET, PUT[:7]) + pack(Type.DATA, b"x"), "is not for this stream"),
        (pack(Type.EXEC, SLEEP) + pack(Type.DATA, bytes(65536)) * 12, "262144 bytes were sent ahead"),
    ],
)
def test_what_cannot_be_is_refused_and_the_session_lives(
    office: Office, agent: Agent, frames: bytes, sentence: str
) -> None:
    a = BackgroundCluster("c").guests["a"]
    with open(agent.root / "f", "wb") as large:  # Getting it takes longer than the test.
        large.truncate(1 << 30)
    other = stream(office)
    other.sendall(pack(Type.EXEC, exec_payload(["cat"])))
    with stream(office) as link:
        link.sendall(frames)
        time.sleep(0.2)  # So that an end of our input is not what it sees first.
        kind, payload = last(link)
    assert (kind, payload[:4]) == (Type.ERROR, bytes(4))
    assert sentence in payload[4:].decode()
    other.sendall(pack(Type.DATA, b"still") + pack(Type.EOF))
    time.sleep(0.2)
    assert last(other) == (Type.EXIT, bytes(8))
    other.close()
    assert a.exec("true").exit_code == 0


def test_a_copy_whose_client_goes_leaves_nothing(office: Office, agent: Agent, tmp_path: Path) -> None:
    with stream(office) as link:
        head = protocol.RECORD.pack(protocol.Kind.FILE, 0o644, 0, 0, 0, 1000, 0, 0)
        link.sendall(pack(Type.PUT, PUT) + pack(Type.DATA, head + bytes(10)))
        deadline = time.monotonic() + LIMIT
        while not list(agent.root.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    while list(agent.root.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_more_streams_than_an_agent_serves_are_told(office: Office, agent: Agent) -> None:
    links = [stream(office) for _ in range(protocol.MAX_STREAMS + 1)]
    for link in links:
        link.sendall(pack(Type.EXEC, SLEEP))
        link.recv(1, socket.MSG_PEEK)
    time.sleep(0.2)
    kind, payload = last(links[-1])
    assert kind == Type.ERROR
    assert b"at once are all it takes" in payload
    for link in links:
        link.close()
    # As soon as the first of them has been hung up there is room again.
    deadline = time.monotonic() + LIMIT
    while (ended := _tried(BackgroundCluster("c").guests["a"])) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ended == 0


def _tried(guest: Guest) -> int | None:
    """Return how `true` ended, or None if there is no room for it."""
    try:
        code: int = guest.exec("true").exit_code
        return code
    except AgentError as error:
        if "at once" not in str(error):
            raise
        return None


def test_there_is_no_stream_of_what_has_no_agent(office: Office) -> None:
    with Client(office.directory.control) as client:
        for guest, sentence in (("u", "is a unikernel"), ("b", "does not answer"), ("x", "has no guest")):
            with pytest.raises(ControlError, match=sentence):
                client.call("agent", guest=guest)
        assert client.call("ps")["cluster"] == "c"
