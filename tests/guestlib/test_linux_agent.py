"""The agent, as an ordinary process under the sanitizers: commands, terminals, windows, sessions, its end."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_host import Agent, Host  # type: ignore[import-not-found]

from guestlib.linux import protocol
from guestlib.linux.protocol import ExecFlag, Type

Start = Callable[..., Agent]


@pytest.fixture
def start(agent_binary: Path, tmp_path: Path) -> Iterator[Start]:
    agents: list[Agent] = []

    def begin(**files: bytes) -> Agent:
        (tmp_path / "run").mkdir()
        for name, content in files.items():
            (tmp_path / "run" / name).write_bytes(content)
        agents.append(Agent(agent_binary, tmp_path / "run", tmp_path / "root"))
        return agents[-1]

    yield begin
    for agent in agents:
        agent.close()


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that its parent has not looked after."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def started(host: Host, stream: int) -> int:
    """Return the process id of the command just started on `stream`."""
    kind, _, payload = host.last({Type.STARTED, Type.ERROR}, stream)
    assert kind == Type.STARTED, payload
    return int(protocol.U32.unpack(payload)[0])


def test_a_session_begins_with_what_the_guest_is(start: Start) -> None:
    agent = start(name=b"a\n", cluster=b"pair\n")
    host = agent.host()
    assert (host.version, host.flags, host.names) == (1, 0, [b"a", b"pair", os.uname().release.encode()])
    agent.finish()


def test_a_command_gives_status_output_and_errors(start: Start) -> None:
    agent = start()
    host = agent.host()
    host.exec(1, "sh", "-c", "echo out; echo err >&2; exit 7", flags=ExecFlag.NO_STDIN)
    assert host.outcome(1) == (7, b"out\n", b"err\n")
    host.exec(1, "sh", "-c", "kill -TERM $$")
    assert host.outcome(1) == (128 + signal.SIGTERM, b"", b"")
    host.exec(1, "sh", "-c", "pwd; echo $A; echo $HOME", cwd="/usr", env=("A=b c",))
    assert host.outcome(1) == (0, b"/usr\nb c\n/root\n", b"")
    host.exec(1, "/usr/bin/env", flags=ExecFlag.CLEAN_ENV, env=("ONLY=this",))
    assert host.outcome(1) == (0, b"ONLY=this\n", b"")
    agent.finish()


@pytest.mark.parametrize(
    ("argv", "cwd", "code", "text"),
    [
        (("nosuch",), "", 2, "nosuch: No such file or directory"),
        (("/",), "", 13, "/: Permission denied"),
        (("true",), "/nowhere", 2, "true: its working directory: No such file or directory"),
    ],
)
def test_a_command_that_cannot_start_is_told(
    start: Start, argv: tuple[str, ...], cwd: str, code: int, text: str
) -> None:
    agent = start()
    host = agent.host()
    host.exec(5, *argv, cwd=cwd)
    assert host.error(5) == (code, text)
    agent.finish()


def test_all_that_a_command_wrote_comes_before_its_end(start: Start) -> None:
    agent = start()
    host = agent.host()
    size = 3_000_000
    host.exec(1, "sh", "-c", f"head -c {size} /dev/zero; head -c 1000 /dev/zero >&2")
    status, out, err = host.outcome(1)
    assert (status, len(out), len(err)) == (0, size, 1000)
    agent.finish()


def test_input_goes_through_a_command_whole(start: Start) -> None:
    agent = start()
    host = agent.host()
    data = os.urandom(1 << 20)
    host.exec(1, "cat")
    window, sent, got = protocol.WINDOW, 0, b""
    while True:
        while sent < len(data) and window > 0:
            part = data[sent : sent + min(window, 50_000)]
            host.send(Type.DATA, 1, part)
            sent, window = sent + len(part), window - len(part)
            if sent == len(data):
                host.send(Type.EOF, 1)
        kind, _, payload = host.receive()
        if kind == Type.CREDIT:
            window += protocol.U32.unpack(payload)[0]
        elif kind == Type.STDOUT:
            got += payload
            host.send(Type.CREDIT, 1, protocol.U32.pack(len(payload)))
        elif kind == Type.EXIT:
            break
    assert protocol.EXIT.unpack(payload) == (0, 0)
    assert got == data
    agent.finish()


def test_a_command_that_reads_nothing_takes_its_window_and_no_more(start: Start) -> None:
    agent = start()
    host = agent.host()
    host.exec(1, "sleep", "60")
    started(host, 1)
    for _ in range(4):
        host.send(Type.DATA, 1, bytes(65536))
    host.send(Type.PING, 0, b"still there")
    frames = list(host.frames({Type.PONG}))
    granted = sum(protocol.U32.unpack(payload)[0] for kind, _, payload in frames if kind == Type.CREDIT)
    host.send(Type.DATA, 1, bytes(granted + 65536)[:65536])
    host.send(Type.DATA, 1, bytes(65536))
    _, stream, payload = host.last({Type.ERROR})
    assert (stream, b"more than were granted" in payload) == (0, True)
    agent.finish()


def test_input_for_one_who_closed_it_is_swallowed(start: Start) -> None:
    agent = start()
    host = agent.host()
    host.exec(1, "sh", "-c", "exec <&-; echo ready; read line < /dev/null; sleep 0.3; echo end")
    assert next(f for f in host.frames({Type.STDOUT}) if f[0] == Type.STDOUT)[2] == b"ready\n"
    for _ in range(3):
        host.send(Type.DATA, 1, bytes(60000))
    assert host.outcome(1) == (0, b"end\n", b"")
    agent.finish()


def test_a_slow_reader_holds_up_its_own_stream_only(start: Start) -> None:
    agent = start()
    host = agent.host()
    host.exec(1, "cat", "/dev/zero")
    got = 0
    while got < protocol.WINDOW:  # No credit for it: it stops there.
        kind, _, payload = host.receive()
        got += len(payload) if kind == Type.STDOUT else 0
    assert got == protocol.WINDOW
    for _ in range(5):
        host.exec(2, "echo", "fast")
        assert host.outcome(2) == (0, b"fast\n", b"")
    host.send(Type.CREDIT, 1, protocol.U32.pack(10))
    assert host.receive() == (Type.STDOUT, 1, bytes(10))
    host.send(Type.CANCEL, 1)
    host.send(Type.CREDIT, 1, protocol.U32.pack(1 << 20))
    assert host.outcome(1)[0] == 128 + signal.SIGKILL
    agent.finish()


def test_a_host_that_reads_nothing_stops_nothing_else(start: Start) -> None:
    agent = start()
    host = agent.host()
    for stream in range(1, 9):
        host.exec(stream, "head", "-c", "200000", "/dev/zero")
    time.sleep(0.3)  # Frames pile up on both sides.
    left, sizes = set(range(1, 9)), dict.fromkeys(range(1, 9), 0)
    while left:
        kind, stream, payload = host.receive()
        if kind == Type.STDOUT:
            sizes[stream] += len(payload)
        elif kind == Type.EXIT:
            left.remove(stream)
    assert set(sizes.values()) == {200_000}
    agent.finish()


def test_a_terminal_has_a_size_and_takes_signals_and_its_end_by_keys(start: Start) -> None:
    agent = start()
    host = agent.host()
    host.exec(
        1, "sh", "-c", "stty size; read x; stty size; trap 'echo int; exit 9' INT; echo go; cat", flags=1, size=(31, 77)
    )
    text = b""

    def until(end: bytes) -> None:
        nonlocal text
        while end not in text:
            kind, _, payload = next(host.frames({Type.STDOUT, Type.EXIT}))
            text += payload if kind == Type.STDOUT else b""
        text = text.partition(end)[2]

    until(b"31 77")
    host.send(Type.RESIZE, 1, protocol.SIZE.pack(50, 100))
    host.send(Type.DATA, 1, b"\r")
    until(b"50 100")
    until(b"go\r\n")
    host.send(Type.DATA, 1, b"hello\r")
    until(b"hello\r\nhello\r\n")  # its echo, and cat's
    host.send(Type.DATA, 1, b"\x03")
    status, out, _ = host.outcome(1)
    assert (status, out.endswith(b"int\r\n")) == (9, True)
    host.exec(1, "cat", flags=ExecFlag.TTY)
    host.send(Type.EOF, 1)
    assert host.outcome(1)[0] == 0
    host.exec(1, "tty", flags=ExecFlag.TTY)
    status, out, err = host.outcome(1)
    assert (status, out.startswith(b"/dev/pts/"), err) == (0, True, b"")
    agent.finish()


def test_signals_reach_the_whole_group(start: Start, until: Callable[[Callable[[], object]], None]) -> None:
    agent = start()
    host = agent.host()
    host.exec(1, "sh", "-c", "sleep 60 & echo $!; wait")
    child = int(next(f for f in host.frames({Type.STDOUT}) if f[0] == Type.STDOUT)[2])
    host.send(Type.SIGNAL, 1, protocol.U32.pack(12345))  # no signal: nothing
    host.send(Type.SIGNAL, 1, protocol.U32.pack(signal.SIGTERM))
    assert host.outcome(1)[0] == 128 + signal.SIGTERM
    until(lambda: ended(child))
    agent.finish()


def test_who_was_left_behind_is_not_waited_for(start: Start) -> None:
    agent = start()
    host = agent.host()
    host.exec(1, "sh", "-c", "sleep 60 & echo $!")
    status, out, _ = host.outcome(1)
    assert status == 0
    os.kill(int(out), signal.SIGKILL)
    agent.finish()


@pytest.mark.parametrize("how", ["closed", "new hello", "nonsense"])
def test_the_end_of_a_session_ends_its_commands(
    start: Start, how: str, until: Callable[[Callable[[], object]], None]
) -> None:
    agent = start()
    host = agent.host()
    host.exec(1, "sleep", "60")
    soft = started(host, 1)
    host.exec(2, "sh", "-c", "trap '' HUP; while :; do sleep 0.05; done")
    hard = started(host, 2)
    if how == "closed":
        host.close()
        host = agent.host()
    elif how == "new hello":
        host.session = 4711
        host.begin()
    else:
        host.connection.sendall(b"what is this, it is no frame at all")
        assert [frame[0] for frame in host.frames({Type.ERROR}, 0)] == [Type.ERROR]
        host.session = 4712
        host.begin()
    until(lambda: ended(soft))
    until(lambda: ended(hard))
    host.exec(1, "echo", "again")
    assert host.outcome(1) == (0, b"again\n", b"")
    agent.finish()


def test_half_a_frame_of_a_session_is_never_completed_by_the_next(start: Start) -> None:
    agent = start()
    host = agent.host()
    marker = agent.folder / "written"
    host.exec(1, "tee", str(marker))
    started(host, 1)
    frame = protocol.frame(host.session, Type.DATA, 1, b"half".ljust(3000, b"."))
    host.connection.sendall(frame[:1000])
    # The host dies and comes back before the guest has noticed: the same connection, from the guest's view.
    again = Host(host.connection, session=77, begin=False)
    again.connection.sendall(bytes(65_600))
    again.begin()
    again.exec(1, "echo", "new")
    assert again.outcome(1) == (0, b"new\n", b"")
    assert not marker.exists() or marker.read_bytes() == b""
    agent.finish()


def test_many_hosts_come_and_go(start: Start) -> None:
    agent = start()
    for number in range(60):
        host = Host(agent.connect(), session=number)
        host.exec(1, "cat")
        if number % 3 == 0:
            host.send(Type.DATA, 1, b"x" * 1000)
        if number % 3 == 1:
            host.connection.sendall(protocol.frame(number, Type.DATA, 1, b"y" * 500)[: number * 7])
        if number % 5 == 0:
            host.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        host.close()
    last = agent.host()
    last.exec(1, "echo", "here")
    assert last.outcome(1) == (0, b"here\n", b"")
    agent.finish()


def test_another_version_is_told_both(start: Start) -> None:
    agent = start()
    host = Host(agent.connect(), begin=False)
    host.begin(version=99)
    assert host.version == protocol.VERSION
    kind, stream, payload = host.receive()
    assert (kind, stream, payload[4:]) == (Type.ERROR, 0, b"the agent speaks version 1, not 99")
    agent.finish()


def test_streams_are_few_and_have_one_owner(start: Start) -> None:
    agent = start()
    host = agent.host()
    for stream in range(1, protocol.MAX_STREAMS + 1):
        host.exec(stream, "sleep", "60")
        started(host, stream)
    host.exec(99, "true")
    assert host.error(99) == (24, "32 streams are open already; wait for one to end")
    host.exec(1, "true")
    assert host.last({Type.ERROR}, 0)[2][4:] == b"stream 1 cannot be opened: it is"
    agent.finish()


@pytest.mark.parametrize(
    ("kind", "stream", "payload"),
    [
        (Type.WELCOME, 0, b""),
        (Type.PING, 0, bytes(65)),
        (Type.SHUTDOWN, 0, b"\x07\0\0\0\0\0\0\0"),
        (Type.SHUTDOWN, 0, b"short"),
        (Type.EXIT, 1, b""),
        (Type.CREDIT, 1, b"\xff\xff\xff\xff"),
        (Type.CREDIT, 1, b"abc"),
        (Type.SIGNAL, 1, b""),
        (Type.RESIZE, 1, b"12345"),
        (Type.DATA, 0, b"x"),
        (Type.EXEC, 0, b""),
    ],
)
def test_frames_that_cannot_be_end_the_session_and_no_more(
    start: Start, kind: Type, stream: int, payload: bytes
) -> None:
    agent = start()
    host = agent.host()
    host.exec(1, "cat")
    started(host, 1)
    host.send(kind, stream, payload)
    assert [frame[:2] for frame in host.frames({Type.ERROR}, 0)] == [(Type.ERROR, 0)]
    host.session += 1
    host.begin()
    host.send(Type.PING, 0, b"fine")
    assert host.receive() == (Type.PONG, 0, b"fine")
    agent.finish()


@pytest.mark.parametrize("payload", [b"", bytes(19), protocol.EXEC.pack(0, 0, 0, 0, 0, 3, 0) + b"\0a\0b\0", bytes(21)])
def test_an_exec_that_does_not_add_up_is_an_error_of_its_stream(start: Start, payload: bytes) -> None:
    agent = start()
    host = agent.host()
    host.send(Type.EXEC, 3, payload)
    assert host.error(3)[0] == 71
    agent.finish()


def test_frames_for_a_stream_that_ended_are_dropped(start: Start) -> None:
    agent = start()
    host = agent.host()
    for kind, payload in ((Type.DATA, b"late"), (Type.EOF, b""), (Type.CREDIT, b"\1\0\0\0"), (Type.CANCEL, b"")):
        host.send(kind, 7, payload)
    host.send(Type.PING, 0, b"ok")
    assert host.receive() == (Type.PONG, 0, b"ok")
    agent.finish()


def test_the_guests_own_command_is_told_of_and_then_the_guest_goes(start: Start) -> None:
    agent = start(command=b"sh\0-c\0echo to the console $WHAT; exit 5\0", env=b"WHAT=now\0")
    host = agent.host()
    assert host.flags & protocol.WelcomeFlag.HAS_COMMAND
    assert host.receive() == (Type.RESULT, 0, protocol.EXIT.pack(5, 0))
    host.send(Type.RESULT_TAKEN)
    assert host.receive() == (Type.BYE, 0, protocol.U32.pack(0))
    assert agent.ended(0) == "to the console now\nhostd: the command ended with status 5\n"


def test_a_result_that_nobody_takes_is_not_waited_for_for_ever(start: Start) -> None:
    agent = start(command=b"nosuch\0")
    assert "the command nosuch cannot be started: No such file or directory" in agent.ended(0)


def test_a_result_is_told_to_who_comes_later(start: Start) -> None:
    agent = start(command=b"false\0")
    agent.connect().close()
    time.sleep(0.1)
    host = agent.host()
    assert host.receive() == (Type.RESULT, 0, protocol.EXIT.pack(1, 0))
    host.send(Type.RESULT_TAKEN)
    agent.ended(0)


@pytest.mark.parametrize(("how", "code"), [(protocol.Shutdown.POWER_OFF, 0), (protocol.Shutdown.REBOOT, 3)])
def test_a_shutdown_says_goodbye(start: Start, how: protocol.Shutdown, code: int) -> None:
    agent = start()
    host = agent.host()
    host.send(Type.SHUTDOWN, 0, protocol.SHUTDOWN.pack(how, 100))
    assert host.receive() == (Type.BYE, 0, protocol.U32.pack(how))
    agent.ended(code)


def test_a_shutdown_by_a_host_that_is_gone_counts(start: Start) -> None:
    agent = start()
    host = agent.host()
    host.send(Type.SHUTDOWN, 0, protocol.SHUTDOWN.pack(0, 100))
    host.close()
    agent.ended(0)


def test_a_clone_is_told_who_it_is(start: Start) -> None:
    agent = start(name=b"template\n", networks=b"lan 02:00:00:00:00:01 - 1500 -\n", root=b"kept")
    host = agent.host()
    head = protocol.BECOME.pack(time.time_ns(), os.urandom(protocol.SEED))
    texts = protocol.strings("name", "clone-1\n", "networks", "", "generation", "17\n")
    host.send(Type.BECOME, 0, head + texts)
    assert host.last({Type.BECAME, Type.ERROR})[0] == Type.BECAME
    found = {path.name: path.read_text() for path in agent.folder.iterdir() if path.is_file()}
    assert found == {"name": "clone-1\n", "generation": "17\n", "root": "kept"}
    host.begin()
    assert host.names[0] == b"clone-1"
    agent.finish()


@pytest.mark.parametrize(
    "texts",
    [b"", b"name", b"name\0", b"name\0x", b"../evil\0x\0", b"command\0x\0", b"name\0x\0hosts\0", b"name\0x\0\0x\0"],
)
def test_what_no_clone_can_be_told_ends_the_session(start: Start, texts: bytes) -> None:
    agent = start(name=b"template\n")
    host = agent.host()
    host.send(Type.BECOME, 0, protocol.BECOME.pack(0, bytes(protocol.SEED)) + texts)
    assert host.last({Type.BECAME, Type.ERROR})[0] == Type.ERROR
    assert [path.name for path in agent.folder.iterdir() if path.is_file()] == ["name"]
    assert (agent.folder / "name").read_bytes() == b"template\n"
