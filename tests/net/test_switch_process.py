"""The switch's process: how it starts, ends, and starts again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from switch_process import LIMIT, SwitchProcess, own, python, running, shared, switch, until

import shm
from net import naming, process, requests, wire
from net.async_client import AsyncClient
from net.client import Client, ConnectionLostError
from net.errors import NetError
from net.process import Configuration, spawn
from net.requests import Request

__all__ = ["own", "shared", "switch"]

RINGS = (shm.ChannelSpec("out", size=65536, max_message=1530), shm.ChannelSpec("in", size=65536, max_message=1530))


def test_the_hello_and_what_there_is_to_see(switch: SwitchProcess) -> None:
    assert switch.client.hello == {
        "version": 1,
        "cluster": "c",
        "network": "lan",
        "mtu": 1500,
        "pid": switch.process.pid,
    }
    found = switch.show()
    assert (found["ports"], found["addresses"], found["captures"]) == ([], [], [])
    assert naming.networks() == ["c/lan"]
    assert naming.control_path("c", "lan").stat().st_mode & 0o777 == 0o600


def test_others_ask_as_well(switch: SwitchProcess) -> None:
    with Client.connect("c", "lan") as first, Client.connect("c", "lan") as second:
        path = first.call(requests.add_vhost("guest", mac=b"\2abcde", isolated=True, rate=1000))["path"]
        assert path == str(naming.vhost_path("c", "lan", "guest"))
        assert Path(path).is_socket()
        [port] = second.call(requests.show())["ports"]
        assert (port["name"], port["kind"], port["mac"]) == ("guest", "vhost-user", b"\2abcde")
        assert (port["isolated"], port["rate"], port["uplink"]) == (True, 1000, False)
        second.call(requests.remove("guest"))
        assert not Path(path).exists()
    assert switch.ports() == []


def test_front_ends_that_came_and_were_thrown_out(switch: SwitchProcess) -> None:
    path = switch.call(requests.add_vhost("guest"))["path"]
    assert switch.port("guest")["front"]["sessions"] == 0
    for number in range(1, 4):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.connect(path)
            peer.sendall(b"\xff" * 12)
            assert peer.recv(1) == b""
        until(lambda number=number: switch.port("guest")["front"]["sessions"] == number, "it is not counted")  # type: ignore[misc]
    front = switch.port("guest")["front"]
    assert (front["connected"], sum(front["errors"].values())) == (False, 3)
    assert switch.port("guest")["quarantined"] in front["errors"]


def test_asyncio(switch: SwitchProcess) -> None:
    async def talk() -> None:
        client = await AsyncClient.connect("c", "lan")
        found = await asyncio.gather(*(client.call(requests.add_vhost(f"g{number}")) for number in range(20)))
        assert [port["name"] for port in found] == [f"g{number}" for number in range(20)]
        with pytest.raises(NetError, match="g3"):
            await client.call(requests.add_vhost("g3"))
        assert len((await client.call(requests.show()))["ports"]) == 20
        switch.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(NetError, match=r"no answer in 0\.05 s"):
                await client.call(requests.show(), timeout=0.05)
        finally:
            switch.process.send_signal(signal.SIGCONT)
        with pytest.raises(ConnectionLostError):
            await client.call(requests.show())

    asyncio.run(talk())


@pytest.mark.parametrize(
    ("configuration", "sentence"),
    [
        ({"mtu": 67}, "mtu is 67; it must be an integer from 68 to 65535"),
        ({"mtu": "big"}, "mtu is 'big'"),
        ({"network": "a/b"}, "'c/a/b' is no network"),
        ({"network": ""}, "network is ''"),
        ({"cluster": "../x"}, "is no network"),
        ({"cpu": 4095}, "Invalid argument"),
        ({"spin": -1}, "spin is -1"),
        ({"lifeline": 1}, "lifeline is 1; it must be true or false"),
    ],
)
def test_a_configuration_that_cannot_be(
    configuration: dict[str, object], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(tmp_path))
    asked = Configuration(**{"cluster": "c", "network": "lan", **configuration})  # type: ignore[arg-type]
    child, connection = spawn(asked, stderr=subprocess.PIPE)
    with pytest.raises(NetError, match=sentence) as raised:
        Client(connection)
    assert "\n" not in str(raised.value)
    _, errors = child.communicate(timeout=LIMIT)
    assert (child.returncode, errors) == (1, b"")
    assert list(tmp_path.glob("net/*/*")) == []


@pytest.mark.parametrize("first", [b"", b"\xff\xff\xff\xff", b"\4\0\0\0\xc1\xc1\xc1\xc1"])
def test_what_is_no_configuration(first: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            process.command(theirs.fileno()), pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True
        )
        ours.sendall(first)
        ours.shutdown(socket.SHUT_WR)
        _, errors = child.communicate(timeout=LIMIT)
        assert (child.returncode, errors) == (1, "")
        assert "error" in wire.Incoming(wire.ANSWER_LIMIT).feed(ours.recv(65536))[0][0]


@pytest.mark.parametrize("arguments", [[], ["x"], ["3", "4"], ["999"]])
def test_without_a_descriptor(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "net.server", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_network_has_one_switch(own: SwitchProcess) -> None:
    child, connection = spawn(own.configuration)
    with pytest.raises(NetError, match="network c/lan: its switch runs already"):
        Client(connection)
    assert child.wait(LIMIT) == 1
    assert own.show()["ports"] == []


def test_stop(own: SwitchProcess) -> None:
    own.call(requests.add_vhost("guest"))
    with Client.connect("c", "lan") as other:
        other.call(requests.stop())
        assert own.process.wait(LIMIT) == 0
        with pytest.raises(ConnectionLostError):
            other.call(requests.show())
    with pytest.raises(ConnectionLostError, match="no switch runs"):
        Client.connect("c", "lan")


def test_sigterm_ends_it_and_a_terminals_signals_do_not(own: SwitchProcess) -> None:
    own.process.send_signal(signal.SIGINT)
    own.process.send_signal(signal.SIGHUP)
    assert own.show()["ports"] == []
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(LIMIT) == 0


STARTER = """
import os, sys
from net.client import Client
from net.process import Configuration, spawn
child, connection = spawn(Configuration("c", "lan", lifeline=sys.argv[1] == "lifeline"))
keep = os.fork() == 0  # One who inherits the connection, and lives on.
if keep:
    sys.stdin.read()
    os._exit(0)
print(Client(connection).hello["pid"], flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("lifeline", [True, False])
def test_when_its_starter_is_killed(lifeline: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(tmp_path))
    starter = python(STARTER, "lifeline" if lifeline else "none")
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    try:
        starter.kill()
        starter.wait()
        if not lifeline:
            with Client.connect("c", "lan") as client:
                assert client.hello["pid"] == pid
                client.call(requests.stop())
        until(lambda: not (tmp_path / "net").exists(), "its sockets are still there")
    finally:
        starter.communicate()


def test_killed_and_started_again(own: SwitchProcess) -> None:
    with shm.Region.create("c/net.lan.uni", channels=RINGS, backing="memfd", serve=False) as region:
        for _ in range(2):
            own.call(requests.add_ring("uni", region))
            path = own.call(requests.add_vhost("linux"))["path"]
            with region.sender("out") as out:
                out.send(bytes(12) + bytes(60), timeout=1)
            until(lambda: own.port("uni")["counters"]["frames_in"] == 1, "the own takes no frame")
            own.kill()
            assert Path(path).exists()
            own.start()
            assert own.ports() == []
            assert not Path(path).exists()


def test_what_was_attached_comes_again(own: SwitchProcess) -> None:
    path = own.call(requests.add_vhost("desktop", attached=True, mac=b"\2abcde"))["path"]
    own.call(requests.add_vhost("other", attached=True))
    own.call(requests.add_vhost("guest"))
    own.call(requests.remove("other"))
    for _ in range(2):
        own.kill()
        own.start()
        [port] = own.show()["ports"]
        assert (port["name"], port["mac"], port["path"], port["attached"]) == ("desktop", b"\2abcde", path, True)
        assert Path(path).is_socket()


def test_what_a_killed_one_left_can_be_removed(own: SwitchProcess) -> None:
    own.call(requests.add_vhost("desktop", attached=True))
    own.kill()
    assert naming.networks() == ["c/lan"]
    process.sweep("c", "lan")
    assert naming.networks() == []
    own.start()
    assert own.ports() == []


def test_an_attached_file_that_was_spoiled_is_nobodys(own: SwitchProcess) -> None:
    for content in (b"", b"\xc1", b"\x81\xa1x\x01", b"\x81\xa1x\x81\xa2op\xa3fly"):
        own.kill()
        (own.folder / "net" / "c" / "lan" / "attached").write_bytes(content)
        own.start()
        assert own.ports() == []
    assert own.process.stderr is not None
    own.call(requests.stop())
    assert b"port x is lost: network c/lan: there is no op 'fly'" in own.process.stderr.read()
    own.start()


def test_two_networks_at_a_time(switch: SwitchProcess) -> None:
    child, connection = spawn(Configuration("c", "other", mtu=9000))
    with Client(connection) as other:
        assert naming.networks() == ["c/lan", "c/other"]
        assert other.hello["mtu"] == 9000
    assert child.wait(LIMIT) == 0
    assert naming.networks() == ["c/lan"]


def test_a_port_ends_with_its_holder(switch: SwitchProcess) -> None:
    with Client.connect("c", "lan") as holder:
        holder.call(requests.add_vhost("held", hold=True))
        switch.call(requests.add_vhost("kept"))
        assert switch.ports() == ["held", "kept"]
        with pytest.raises(NetError, match="held"):
            switch.call(requests.add_vhost("held"))
    until(lambda: switch.ports() == ["kept"], "the port is still there")


def test_a_switch_of_its_own_cpu() -> None:
    cpu = min(os.sched_getaffinity(0))
    with running(cpu=cpu) as switch:
        sets = {
            tuple(os.sched_getaffinity(int(task.name))) for task in Path(f"/proc/{switch.process.pid}/task").iterdir()
        }
        assert (cpu,) in sets
        assert tuple(os.sched_getaffinity(switch.process.pid)) == tuple(os.sched_getaffinity(0))


def test_its_memory_stays_small(switch: SwitchProcess) -> None:
    maps = Path(f"/proc/{switch.process.pid}/maps").read_text()
    assert "asyncio" not in maps
    assert not any(name in maps for name in ("_pydantic", "_ssl", "_posix_ipc", "_asyncio"))


def test_an_op_of_another_kind(switch: SwitchProcess) -> None:
    for request, sentence in (
        ({}, "network c/lan: op is missing"),
        ({"op": 3}, "network c/lan: op is 3; it must be a text of 1 to 255 bytes"),
        ({"op": "fly"}, "network c/lan: there is no op 'fly'"),
        ({"op": "show", "all": True}, "network c/lan: show: 'all' is no field of it"),
    ):
        with pytest.raises(NetError) as raised:
            switch.call(Request(request))
        assert str(raised.value) == sentence


@pytest.mark.parametrize(("cpus", "policy"), [(1, os.SCHED_BATCH), (2, os.SCHED_OTHER)])
def test_with_one_processor_it_interrupts_nobody(cpus: int, policy: int) -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < cpus:
        pytest.skip(f"needs {cpus} processors")
    os.sched_setaffinity(0, sorted(allowed)[:cpus])
    try:
        with running() as switch:
            pid = switch.process.pid
            policies = {int(task): os.sched_getscheduler(int(task)) for task in os.listdir(f"/proc/{pid}/task")}
    finally:
        os.sched_setaffinity(0, allowed)
    assert policies.pop(pid) == os.SCHED_OTHER  # Who asks it is answered at once.
    assert list(policies.values()) == [policy]
