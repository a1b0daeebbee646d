"""The agent's copies, in and out: whole trees, and records that would like to lead elsewhere."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_host import LIMIT, Agent, Host, record  # type: ignore[import-not-found]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestlib.linux import protocol
from guestlib.linux.protocol import CopyFlag, Kind, Type

FUZZ = Path(__file__).parent / "fuzz" / "agent_fuzz.c"
CASES = 1_000_000 if os.environ.get("HOSTD_LONG") else 100_000


@pytest.fixture
def agent(agent_binary: Path, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(agent_binary, tmp_path / "run", tmp_path / "root")
    yield agent
    if agent.process.poll() is None:
        agent.finish()
    agent.close()


@pytest.fixture
def host(agent: Agent) -> Host:
    return agent.host()


def put(host: Host, path: str, data: bytes, name: str = "copy", flags: int = 0) -> tuple[Type, Any]:
    """Copy records in; return DONE and its numbers, or ERROR and its code."""
    host.send(Type.PUT, 1, protocol.COPY.pack(flags) + protocol.strings(path, name))
    window = protocol.WINDOW
    host.connection.setblocking(True)
    while data:
        part, data = data[: min(window, 60_000)], data[min(window, 60_000) :]
        host.send(Type.DATA, 1, part)
        window -= len(part)
        while data and not window:
            kind, _, payload = host.receive()
            if kind == Type.ERROR:
                return kind, protocol.ERROR.unpack_from(payload)[0]
            window += protocol.U32.unpack(payload)[0]
    host.send(Type.EOF, 1)
    kind, _, payload = host.last({Type.DONE, Type.ERROR}, 1)
    return kind, protocol.DONE.unpack(payload) if kind == Type.DONE else protocol.ERROR.unpack_from(payload)[0]


def get(host: Host, path: str) -> tuple[dict[str, tuple[Any, ...]], tuple[int, int, int]]:
    """Copy out; return the records by path (kind, mode, target or content) and DONE's numbers. Raises OSError."""
    host.send(Type.GET, 2, protocol.COPY.pack(0) + protocol.strings(path))
    data = b""
    for kind, _, payload in host.frames({Type.DONE, Type.ERROR}, 2):
        data += payload if kind == Type.DATA else b""
    if kind == Type.ERROR:
        raise OSError(protocol.ERROR.unpack_from(payload)[0], payload[4:].decode())
    found = {}
    while data:
        kind, mode, _, _, _, size, path_size, target_size = protocol.RECORD.unpack_from(data)
        data = data[protocol.RECORD.size :]
        name, target = data[:path_size], data[path_size : path_size + target_size]
        content = data[path_size + target_size :][:size]
        data = data[path_size + target_size + size :]
        found[name.decode()] = (Kind(kind), mode, target.decode() if target else content)
    return found, protocol.DONE.unpack(payload)


TREE = [
    record(Kind.DIRECTORY, "", mode=0o750),
    record(Kind.FILE, "a", b"content of a", mode=0o640),
    record(Kind.DIRECTORY, "d", mode=0o755),
    record(Kind.FILE, "d/empty", mode=0o600),
    record(Kind.SYMLINK, "d/link", target="../a"),
    record(Kind.FILE, "d/large", os.urandom(300_000), mode=0o755),
]


def test_a_tree_goes_in_and_comes_out_again(agent: Agent, host: Host) -> None:
    assert put(host, "/tree", b"".join(TREE)) == (Type.DONE, (6, 300_012, 0))
    root = agent.root / "tree"
    assert (root / "a").read_bytes() == b"content of a"
    assert (root / "a").stat().st_mtime == 1_600_000_000
    assert (root.stat().st_mode & 0o7777, (root / "d" / "large").stat().st_mode & 0o7777) == (0o750, 0o755)
    assert os.readlink(root / "d" / "link") == "../a"
    found, done = get(host, "/tree")
    assert done == (6, 300_012, 0)
    assert found == {
        "": (Kind.DIRECTORY, 0o750, b""),
        "a": (Kind.FILE, 0o640, b"content of a"),
        "d": (Kind.DIRECTORY, 0o755, b""),
        "d/empty": (Kind.FILE, 0o600, b""),
        "d/link": (Kind.SYMLINK, 0o777, "../a"),
        "d/large": (Kind.FILE, 0o755, (root / "d" / "large").read_bytes()),
    }
    assert found["d/large"][2] in TREE[5]


def test_a_copy_into_a_directory_takes_its_own_name(agent: Agent, host: Host) -> None:
    (agent.root / "there").mkdir()
    one = record(Kind.FILE, "", b"one")
    assert put(host, "/there", one, name="f")[0] == Type.DONE
    assert put(host, "/new", one, name="f")[0] == Type.DONE
    assert (agent.root / "there" / "f").read_bytes() == (agent.root / "new").read_bytes() == b"one"
    folder = record(Kind.DIRECTORY, "", mode=0o755) + record(Kind.FILE, "x", b"two")
    assert put(host, "/there", folder, name="f", flags=CopyFlag.EXACT)[0] == Type.DONE
    assert sorted(path.name for path in (agent.root / "there").iterdir()) == ["f", "x"]
    assert put(host, "/", folder, flags=CopyFlag.EXACT)[0] == Type.DONE
    assert (agent.root / "x").read_bytes() == b"two"
    assert put(host, "/nowhere/f", one) == (Type.ERROR, 2)
    assert put(host, "/there", one, name="..") == (Type.ERROR, 22)


def test_a_file_is_replaced_when_it_is_whole(agent: Agent, host: Host) -> None:
    (agent.root / "f").write_bytes(b"old")
    host.send(Type.PUT, 1, protocol.COPY.pack(0) + protocol.strings("/f", "f"))
    host.send(Type.DATA, 1, record(Kind.FILE, "", b"half", size=1000))
    host.send(Type.PING, 0, b"")
    list(host.frames({Type.PONG}))
    assert (agent.root / "f").read_bytes() == b"old"
    host.send(Type.EOF, 1)
    assert host.error(1) == (71, "f: the copy ended in the middle of a record")
    assert [path.name for path in agent.root.iterdir()] == ["f"]
    assert put(host, "/f", record(Kind.FILE, "", b"new"))[0] == Type.DONE
    assert (agent.root / "f").read_bytes() == b"new"


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_copy_that_is_given_up_leaves_nothing(agent: Agent, host: Host, how: str) -> None:
    host.send(Type.PUT, 1, protocol.COPY.pack(0) + protocol.strings("/f", "f"))
    host.send(Type.DATA, 1, record(Kind.FILE, "", b"half", size=1000))
    if how == "cancel":
        host.send(Type.CANCEL, 1)
        assert host.error(1)[0] == 125
    else:
        host.close()
        host = agent.host()
    host.send(Type.PING, 0, b"")
    list(host.frames({Type.PONG}))
    assert list(agent.root.iterdir()) == []


@pytest.mark.parametrize(
    "path", ["..", "../x", "a/../../x", "/etc/x", "a//b", "", ".", "a/./b", "a/", "out/x", "out/../x", "nowhere/x"]
)
def test_no_record_leads_out_of_the_copy(agent: Agent, host: Host, path: str) -> None:
    (agent.root / "dest").mkdir()
    (agent.root / "outside").mkdir()
    (agent.root / "dest" / "out").symlink_to("../outside")
    top = record(Kind.DIRECTORY, "", mode=0o755)
    kind, _ = put(host, "/dest", top + record(Kind.FILE, path, b"bad"), flags=CopyFlag.EXACT)
    assert kind == Type.ERROR
    assert list((agent.root / "outside").iterdir()) == []
    assert [p for p in agent.root.rglob("*") if p.is_file()] == []


def test_a_link_that_a_copy_makes_is_not_followed_by_it(agent: Agent, host: Host) -> None:
    (agent.root / "outside").mkdir()
    top = record(Kind.DIRECTORY, "", mode=0o755) + record(Kind.SYMLINK, "l", target="/outside")
    assert put(host, "/dest", top + record(Kind.FILE, "l/x", b"bad")) == (Type.ERROR, 40)
    assert put(host, "/dest", top + record(Kind.DIRECTORY, "l", mode=0o755), flags=CopyFlag.EXACT)[0] == Type.ERROR
    assert put(host, "/dest", top + record(Kind.FILE, "l", b"in its place"), flags=CopyFlag.EXACT)[0] == Type.DONE
    assert (agent.root / "dest" / "l").read_bytes() == b"in its place"
    assert list((agent.root / "outside").iterdir()) == []


def test_a_link_to_everything_leads_to_the_root_of_copies(agent: Agent, host: Host) -> None:
    (agent.root / "all").symlink_to("/")
    before = os.stat("/").st_mode
    folder = record(Kind.DIRECTORY, "", mode=0o2711)
    assert put(host, "/", folder, name="all") == (Type.ERROR, errno.ENOTDIR)
    assert put(host, "/all", folder, flags=CopyFlag.EXACT)[0] == Type.DONE
    assert os.stat("/").st_mode == before
    assert agent.root.stat().st_mode & 0o7777 == 0o2711
    assert put(host, "/all", record(Kind.FILE, "", b"x"), flags=CopyFlag.EXACT) == (Type.ERROR, errno.EISDIR)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(40),
        record(9, ""),
        record(Kind.DIRECTORY, "", size=5),
        record(Kind.SYMLINK, ""),
        record(Kind.FILE, "first", b"x"),
        record(Kind.FILE, "", b"x", target="nowhere"),
        record(Kind.FILE, "", b"x") + record(Kind.FILE, "below", b"x"),
        record(Kind.DIRECTORY, "", mode=0o755) + record(Kind.FILE, "zero\0inside", b"x"),
        record(Kind.FILE, "", b"x")[:-1],
    ],
)
def test_records_that_cannot_be_are_errors(agent: Agent, host: Host, data: bytes) -> None:
    assert put(host, "/f", data)[0] == Type.ERROR
    host.send(Type.PING, 0, b"fine")
    assert list(host.frames({Type.PONG}))[-1] == (Type.PONG, 0, b"fine")


def test_what_cannot_be_read_is_told(agent: Agent, host: Host) -> None:
    with pytest.raises(OSError, match="/nowhere: No such file or directory"):
        get(host, "/nowhere")
    os.mkfifo(agent.root / "pipe")
    with pytest.raises(OSError, match="Invalid argument"):
        get(host, "/pipe")
    (agent.root / "d").mkdir()
    os.mkfifo(agent.root / "d" / "pipe")
    assert get(host, "/d") == ({"": (Kind.DIRECTORY, 0o755, b"")}, (1, 0, 1))
    (agent.root / "l").symlink_to("d")
    assert get(host, "/l")[1] == (1, 0, 1)


def test_a_copy_out_waits_for_credit(agent: Agent, host: Host) -> None:
    (agent.root / "f").write_bytes(bytes(protocol.WINDOW * 2))
    host.send(Type.GET, 2, protocol.COPY.pack(0) + protocol.strings("/f"))
    size = 0
    while size < protocol.WINDOW:
        size += len(host.receive()[2])
    assert size == protocol.WINDOW
    host.send(Type.PING, 0, b"idle")
    assert host.receive() == (Type.PONG, 0, b"idle")
    os.truncate(agent.root / "f", protocol.WINDOW)
    host.send(Type.CREDIT, 2, protocol.U32.pack(protocol.WINDOW))
    assert host.error(2)[1] == "it became shorter while it was read"


@given(data=st.binary(max_size=600), cut=st.integers(0, 200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_end_the_session_at_most(agent: Agent, data: bytes, cut: int) -> None:
    host = Host(agent.connect(), session=data.__hash__() & 0xFFFFFFFF)
    good = protocol.frame(host.session, Type.GET, 1, protocol.COPY.pack(0) + protocol.strings("/"))
    host.connection.sendall(good[:cut] + data)
    host.connection.shutdown(1)
    host.connection.settimeout(LIMIT)
    while host.connection.recv(65536):
        pass
    host.close()
    again = agent.host()
    again.send(Type.PING, 0, b"fine")
    assert again.receive() == (Type.PONG, 0, b"fine")
    again.close()


def test_hostile_frames_and_records_by_the_hundred_thousand(agent_fuzz: Path, tmp_path: Path) -> None:
    root = tmp_path / "fuzzed"
    (root / "a").mkdir(parents=True)
    (root / "l").symlink_to("/")
    (root / "big").write_bytes(bytes(100_000))
    done = subprocess.run(
        [agent_fuzz, root, str(os.getpid()), str(CASES)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
