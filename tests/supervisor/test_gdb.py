"""A real gdb on real guests, which talk meanwhile; and clients that are no gdb."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import LIMIT, ROOT, Place, until

from hostd import Host
from hostd.control.client import ControlError
from hostd.gdb.abilities import Abilities
from hostd.host import BackgroundCluster

LOTTERY = ROOT / "examples" / "lottery.c"
CLUSTER = f"""
[region.wire]
[channel.draws]
region = "wire"
size = "64KiB"
[guest.drawer]
program = "{LOTTERY}"
args = ["draw"]
memory = "4MiB"
channels = {{ draws = "send" }}
[guest.tally]
program = "{LOTTERY}"
args = ["tally"]
memory = "4MiB"
channels = {{ draws = "receive" }}
"""
CRASHER = """
[guest.crasher]
program = "{programs}/crasher.c"
args = ["%s"]
memory = "4MiB"
"""
QUIET = ("set pagination off", "set width 0", "set confirm off")


@contextlib.contextmanager
def running(file: Path, guest: str = "tally") -> Iterator[BackgroundCluster]:
    """Bring a cluster up whose `guest` has begun to wait."""
    with Host() as host:
        cluster = host.up(file)
        until(lambda: "waiting" in cluster.guests[guest].reports)
        try:
            yield cluster
        finally:
            cluster.down()


def command(target: str, *commands: str, json_only: bool = False) -> list[str]:
    arguments = [argument for one in (*QUIET, *commands) for argument in ("-ex", one)]
    options = ["--json"] if json_only else []
    return [sys.executable, "-m", "hostd.cli", "gdb", *options, target, "--", "-nx", "-batch", *arguments]


def gdb(target: str, *commands: str) -> str:
    """Run gdb on a guest with these commands; return what it says."""
    done = subprocess.run(
        command(target, *commands), capture_output=True, text=True, timeout=LIMIT, check=False, cwd=ROOT
    )
    return done.stdout + done.stderr


def private(cluster: BackgroundCluster, guest: str) -> int:
    """Return how many bytes of its code are a guest's own."""
    return next(row["private"] for row in cluster.guests[guest].slots() if row["name"] == "image.0")


def draws(cluster: BackgroundCluster) -> int:
    """Return how many draws the tally has, by looking at its memory."""
    known = cluster.call("inspect", guests=["tally"])["guests"]["tally"]
    from hostd.gdb.symbols import address_of

    address = address_of(Path(known["image"]), "tally")
    assert address is not None
    return int.from_bytes(cluster.guests["tally"].read_virtual(address, 8), "little")


def end_well(cluster: BackgroundCluster) -> None:
    """Tell the tally that it is enough: it has got every draw, in order, or it fails."""
    before = draws(cluster)
    until(lambda: draws(cluster) > before)
    place = Path(cluster.call("inspect", guests=["tally"])["guests"]["tally"]["image"])
    from hostd.gdb.symbols import address_of

    address = address_of(place, "enough")
    assert address is not None
    cluster.guests["tally"].write(address, b"\1", virtual=True)
    result = cluster.wait(timeout=LIMIT)
    assert result.ok, result.json
    assert result.guests["tally"].reports["draws"] <= result.guests["drawer"].reports["sent"]


def test_a_program_is_debugged_while_messages_come(place: Place) -> None:
    file = place.file(CLUSTER)
    with running(file) as cluster:
        until(lambda: draws(cluster) > 1000)
        before = private(cluster, "tally")
        said = gdb(
            f"{file.stem}/tally",
            "info threads",
            "break record",
            "continue",
            "backtrace",
            "info args",
            "print *draw",
            "print *to",
            "finish",
            "print tally",
            "continue",
            "stepi",
            "next",
            "next",
            "delete",
            "watch tally.sum",
            "continue",
            "delete",
            "hbreak record",
            "continue",
            "info registers rip cr3 mxcsr",
            "disassemble record,+8",
            'eval "monitor where %p", &tally',
            "detach",
        )
        assert '* 1    Thread 1 "vCPU 0, ring 3"' in said
        assert "Breakpoint 1, record (to=" in said
        assert re.search(r"#0  record .*\n#1 .* in take .*\n#2  main ", said)
        assert "to = 0x" in said
        drawn = re.search(r"\$1 = \{number = (\d+), value = (\d+)\}", said)
        tallies = re.findall(r"= \{draws = (\d+), sum = (\d+), last = \{(\d+),", said)
        assert drawn is not None
        # The draw that was recorded while it finished, and nothing else.
        (count, total, _), (later, more, newest) = tallies
        assert (int(count), int(later)) == (int(drawn[1]), int(drawn[1]) + 1)
        assert int(more) - int(total) == int(drawn[2]) == int(newest)
        old, new = re.search(r"Old value = (\d+)\nNew value = (\d+)", said).groups()  # type: ignore[union-attr]
        assert 1 <= int(new) - int(old) <= 49
        assert "Breakpoint 3, record (to=" in said
        assert re.search(r"cr3 +0x10000 ", said)
        assert "<record+3>:" in said
        assert "\tint3" not in said
        assert "slot image.2" in said
        assert "detached" in said
        # Nothing is left of it: not in the code, whose pages are everybody's again, nor among the messages.
        assert private(cluster, "tally") == before
        end_well(cluster)


def test_ctrl_c_stops_and_a_variable_ends_it(place: Place) -> None:
    file = place.file(CLUSTER)
    with running(file) as cluster:
        line = [sys.executable, "-m", "hostd.cli", "gdb", f"{file.stem}/tally", "--", "-nx"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        # A session of its own, as a terminal's Ctrl-C would reach hostd and gdb alone.
        with subprocess.Popen(line, text=True, cwd=ROOT, start_new_session=True, **pipes) as session:
            assert session.stdin is not None
            session.stdin.write("set pagination off\nset width 0\nset confirm off\ncontinue\n")
            session.stdin.flush()
            until(lambda: attached(cluster, "tally"))
            # It attaches, stops and goes on: from then on draws come in.
            stopped = draws(cluster)
            until(lambda: draws(cluster) > stopped)
            session.send_signal(signal.SIGINT)
            said, _ = session.communicate("print tally.draws\nset var enough = 1\ncontinue\n", timeout=LIMIT)
        assert "Program received signal SIGINT, Interrupt." in said
        assert "exited normally]" in said
        assert cluster.wait(timeout=LIMIT).ok


def attached(cluster: BackgroundCluster, guest: str) -> bool:
    """Tell whether a debugger is there, by asking for a place for another."""
    try:
        cluster.guests[guest].debug()
    except ControlError as error:
        if "a debugger is attached to it already" in str(error):
            return True
        raise
    return False


def test_a_second_debugger_is_told_and_a_dead_one_forgotten(place: Place) -> None:
    file = place.file(CLUSTER)
    with running(file) as cluster:
        with Raw(cluster.guests["tally"].debug()) as first:
            assert first.ask("?") == "T05thread:1;"
            code = first.ask("m100000,1")
            assert first.ask("Z0,100000,1") == "OK"
            # The call page, where the host writes: it must not run into a guard of its own.
            can = Abilities.found(3)
            assert first.ask("Z2,1004,4") == ("OK" if can.steps and can.int3 and can.registers else "E0e")
            assert attached(cluster, "tally")
            done = subprocess.run(
                command(f"{file.stem}/tally"), capture_output=True, text=True, timeout=LIMIT, check=False, cwd=ROOT
            )
            assert done.returncode == 1
            assert "tally: debug: a debugger is attached to it already; let it detach first" in done.stderr
            with socket.socket(socket.AF_UNIX) as uninvited:
                uninvited.connect(first.path)
                uninvited.settimeout(LIMIT)
                assert uninvited.recv(1) == b""
            with pytest.raises(ControlError, match="a debugger is attached to it; write to its memory from there"):
                cluster.guests["tally"].write(0x110000, b"x")
            before = draws(cluster)
            time.sleep(0.05)
            assert draws(cluster) == before
            assert first.send("vCont;c") is None  # And it goes without a word.
        until(lambda: not attached(cluster, "tally"))
        assert cluster.guests["tally"].read(0x100000, 1).hex() == code
        end_well(cluster)


def test_a_debugger_may_go_at_any_moment(place: Place) -> None:
    with running(place.file(CLUSTER)) as cluster:
        for number in range(60):
            with Raw(cluster.guests["tally"].debug()) as client:
                assert client.ask("Z0,100000,1") == "OK"
                client.send("vCont;c")
                time.sleep(0.0001 * (number % 17))
        end_well(cluster)


@pytest.mark.parametrize(
    ("how", "stop", "code"), [("divide", "SIGFPE", 128), ("write", "SIGSEGV", 142)], ids=["divide", "write"]
)
def test_a_fault_is_seen_where_it_happens(place: Place, how: str, stop: str, code: int) -> None:
    file = place.file(CRASHER % how)
    with running(file, "crasher") as cluster:
        said = gdb(file.stem, "set var armed = 1", "continue", "backtrace", "print $_siginfo", "stepi", "continue")
        assert f"Program received signal {stop}" in said
        assert re.search(r"#0 .*(divide|scribble) \(.*\n#1 .* main ", said)
        # It is given its signal: then it ends as it would have without a debugger.
        assert "Program terminated with signal" in said
        result = cluster.wait(timeout=LIMIT).guests["crasher"]
        assert (result.outcome, result.exit_code) == ("fault", code), result
        assert ("divide+" if how == "divide" else "scribble+") in result.message


def test_what_a_debugger_mends_goes_on(place: Place) -> None:
    file = place.file(CRASHER % "divide")
    with running(file, "crasher") as cluster:
        said = gdb(file.stem, "set var armed = 1", "continue", "return 5", "continue")
        assert "[Inferior 1 (Remote target) exited with code 05]" in said
        assert cluster.wait(timeout=LIMIT).guests["crasher"].exit_code == 5


def test_kill_and_a_guest_that_is_gone(place: Place) -> None:
    file = place.file(CRASHER % "divide")
    with running(file, "crasher") as cluster:
        assert "killed]" in gdb(file.stem, "kill")
        until(lambda: cluster.guests["crasher"].result.outcome == "killed")
        done = place.command("gdb", file.stem)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "is not running (ended), so there is nothing to debug" in done.stderr
        missing = place.command("gdb", file.stem, "--symbols", "/nowhere")
        assert missing.returncode == 1


def test_stopping_a_guest_that_a_debugger_holds(place: Place) -> None:
    file = place.file(CLUSTER)
    with running(file) as cluster:
        with Raw(cluster.guests["tally"].debug()) as held:
            assert held.ask("?") == "T05thread:1;"
            started = time.monotonic()
            cluster.guests["tally"].stop()
            assert cluster.guests["tally"].result.message.endswith("stopped")
            assert time.monotonic() - started < LIMIT


def test_ones_own_client_by_tcp_and_by_a_path(place: Place, tmp_path: Path) -> None:
    file = place.file(CLUSTER)
    with running(file) as cluster:
        for where in ("127.0.0.1:0", f"{place.folder}/own.sock"):
            line = [sys.executable, "-m", "hostd.cli", "gdb", f"{file.stem}/tally", "--listen", where, "--json"]
            with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) as relay:
                assert relay.stdout is not None
                told = json.loads("".join(iter(relay.stdout.readline, "}\n")) + "}")
                assert Path(told["symbols"]).is_file()
                for _ in range(2):
                    with Raw(told["listen"]) as client:
                        assert client.ask("qSupported:swbreak+").startswith("PacketSize=")
                        client.link.sendall(bytes(set(os.urandom(4096)) - set(b"$-\3")))
                        assert client.ask("?") == "T05thread:1;"
                        assert client.ask("D") == "OK"
                    until(lambda: not attached(cluster, "tally"))
                relay.send_signal(signal.SIGINT)
                assert relay.wait(LIMIT) == 0
        assert not (place.folder / "own.sock").exists()
        end_well(cluster)


def test_how_to_attach_is_told(place: Place) -> None:
    file = place.file(CLUSTER)
    with running(file) as cluster:
        line = command(f"{file.stem}/tally", "print 1", json_only=True)
        done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT, check=True, cwd=ROOT)
        told = json.loads(done.stdout)
        assert told["socket"] == cluster.guests["tally"].debug()
        assert told["command"][:3] == ["gdb", "-q", told["symbols"]]
        assert f"target remote {told['socket']}" in told["command"]
        end_well(cluster)


class Raw:
    """A client that speaks the protocol itself."""

    def __init__(self, path: str) -> None:
        self.path = path
        if path.startswith("/"):
            self.link = socket.socket(socket.AF_UNIX)
            self.link.connect(path)
        else:
            host, _, port = path.partition(":")
            self.link = socket.create_connection((host, int(port)))
        self.link.settimeout(LIMIT)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()

    def send(self, text: str) -> None:
        data = text.encode()
        self.link.sendall(b"$%b#%02x" % (data, sum(data) & 255))

    def ask(self, text: str) -> str:
        """Send a packet; return the answer, behind the acknowledgment."""
        self.send(text)
        got = b""
        while not (whole := re.search(rb"\$([^#]*)#..$", got)):
            data = self.link.recv(4096)
            assert data, got
            got += data
        with contextlib.suppress(BrokenPipeError):  # After a detach nobody waits for it.
            self.link.sendall(b"+")
        return whole[1].decode()
