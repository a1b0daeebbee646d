"""Uplinks on the host: addresses, routes, NAT, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from kernel_ports import Harness, Port
from netns import Namespace, index_of, namespaces, needs_root, up, veth
from pyroute2 import IPRoute

from net import nat, uplink
from net.errors import NetError
from net.uplink import UplinkPlan, set_up, sweep, take_down
from net.uplink_records import read_all

pytestmark = needs_root
ROOT = Path(nat.__file__).parent.parent
SERVER, OUT, PORT = "192.0.2.1", "192.0.2.2", 2222
"""the server outside, the host's address on the way there"""

numbers = itertools.count()


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of the test's own, without records at the end."""
    folder = Path(tempfile.mkdtemp(prefix="hostd-uplink-"))
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(folder))
    yield folder
    left = [path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture
def network() -> str:
    return f"uplinktest-{os.getpid()}/lan{next(numbers)}"


@pytest.fixture(scope="module")
def harness() -> Harness:
    return Harness()


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A namespace that is the host; the test is in there."""
    with namespaces(1) as [made], made.entered():
        yield made


@pytest.fixture
def tap(harness: Harness, host: Namespace) -> Iterator[Port]:
    with harness.open("tap", "tap0") as port:
        yield port


@pytest.fixture
def outside(host: Namespace) -> Iterator[Namespace]:
    """A namespace with a server's address, beyond the host's interface `out`; it knows no way to guests."""
    with namespaces(1) as [made]:
        veth("out", "in", made)
        up("out", f"{OUT}/24")
        with made.entered():
            up("in", f"{SERVER}/24")
        with IPRoute() as routes:
            routes.route("add", dst="default", gateway=SERVER)
        yield made


def plan(network: str, **fields: Any) -> UplinkPlan:
    return UplinkPlan(network, "tap", "tap0", **{"address": IPv4Interface("10.9.0.1/24"), **fields})


def snapshot() -> dict[str, object]:
    """Return all of the host's that an uplink could change, but taps."""
    with IPRoute() as routes:
        links = {link.get_attr("IFLA_IFNAME"): link for link in routes.get_links()}
        names = [name for name in sorted(links) if "tap" not in name]
        return {
            "links": {name: (links[name]["flags"] & 1, links[name].get_attr("IFLA_MTU")) for name in names},
            "addresses": sorted((one["index"], str(one.get_attr("IFA_ADDRESS"))) for one in routes.get_addr(family=2)),
            "routes": sorted(str((r.get_attr("RTA_DST"), r.get_attr("RTA_OIF"))) for r in routes.get_routes(family=2)),
            "tables": tables(),
            "forwarding": {name: forwarding(name) for name in ("all", "default", *names)},
        }


def tables() -> list[str]:
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout.splitlines()


def forwarding(interface: str) -> str:
    return Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding").read_text().strip()


def link(interface: str) -> Any:
    with IPRoute() as routes:
        [found] = routes.get_links(index_of(interface))
        return found


class TestTap:
    def test_what_is_set_up_is_taken_down(self, tap: Port, outside: Namespace, network: str) -> None:
        before = snapshot()
        set_up(plan(network, mtu=9000))
        assert link("tap0").get_attr("IFLA_MTU") == 9000
        assert link("tap0").get_attr("IFLA_ADDRESS") == uplink.tap_mac(network)
        assert link("tap0")["flags"] & 1
        assert not Path("/proc/net/if_inet6").read_text().count("tap0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("10.9.0.77", 9))
            assert probe.getsockname()[0] == "10.9.0.1"
        assert snapshot() != before
        take_down(network)
        assert snapshot() == before
        assert link("tap0").get_attr("IFLA_MTU") == 1500
        take_down(network)

    def test_a_subnet_wider_than_the_address(self, tap: Port, network: str) -> None:
        before = snapshot()
        set_up(plan(network, address=IPv4Interface("10.9.0.1/32"), subnet=IPv4Network("10.9.0.0/16")))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("10.9.200.1", 9))
            assert probe.getsockname()[0] == "10.9.0.1"
        take_down(network)
        assert snapshot() == before

    def test_without_an_address(self, tap: Port, network: str) -> None:
        set_up(plan(network, address=None, mtu=65535))
        assert link("tap0")["flags"] & 1
        assert link("tap0").get_attr("IFLA_MTU") == link("tap0").get_attr("IFLA_MAX_MTU")
        take_down(network)

    def test_again_with_another_plan(self, tap: Port, outside: Namespace, network: str) -> None:
        """A switch that comes back, in the same process or a later one, finds nothing in its way."""
        before = snapshot()
        set_up(plan(network, nat=True))
        set_up(plan(network, nat=True))
        set_up(plan(network, address=IPv4Interface("10.10.0.1/24")))
        assert tables() == []
        assert forwarding("out") == "0"
        take_down(network)
        assert snapshot() == before

    def test_where_an_event_loop_runs(self, tap: Port, network: str) -> None:
        async def main() -> None:
            set_up(plan(network))
            assert sweep() == []
            take_down(network)

        asyncio.run(main())


class TestPacket:
    def test_an_interface_gets_back_what_it_had(self, host: Namespace, network: str) -> None:
        veth("a", "b")
        before = snapshot()
        set_up(UplinkPlan(network, "packet", "a", mtu=4000))
        assert link("a")["flags"] & 1
        assert link("a").get_attr("IFLA_MTU") == 4000
        take_down(network)
        assert snapshot() == before

    def test_an_interface_that_has_all_it_needs_is_left_alone(self, host: Namespace, network: str) -> None:
        veth("a", "b")
        up("a", "10.1.1.1/24", mtu=9000)
        before = snapshot()
        set_up(UplinkPlan(network, "packet", "a"))
        assert snapshot() == before
        take_down(network)
        assert snapshot() == before


@contextlib.contextmanager
def pump(one: Port, other: Port) -> Iterator[None]:
    """Be the switch between two ports."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            for source, target in ((one, other), (other, one)):
                frames = source.look()
                assert isinstance(frames, list)
                for frame in frames:
                    target.send(frame)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def guest(harness: Harness, tap: Port, address: str, gateway: str) -> Iterator[Namespace]:
    """A guest on the network of a tap: a namespace with an interface, whose other end a switch joins to the tap.

    That end is in a namespace of its own, where no host answers for addresses of its other interfaces.
    """
    with namespaces(2) as [made, wire]:
        with wire.entered():
            veth("wire", "eth0", made)
            up("wire")
            port = harness.open("packet", "wire")
        with made.entered():
            up("eth0", f"{address}/24")
            with IPRoute() as routes:
                routes.route("add", dst="default", gateway=gateway)
        with port, pump(tap, port):
            yield made


def bound(namespace: Namespace, kind: int, address: tuple[str, int] | None = None) -> socket.socket:
    """Return a socket in a namespace."""
    with namespace.entered():
        made = socket.socket(socket.AF_INET, kind)
    made.settimeout(5)
    if address is not None:
        made.bind(address)
    return made


def exchange(client: socket.socket, server: socket.socket, to: str) -> str:
    """Connect, send some megabytes each way, and return who the server thought it was."""
    server.listen()
    client.connect((to, server.getsockname()[1]))
    accepted, peer = server.accept()
    data = os.urandom(1 << 20) * 2
    with accepted:
        for source, target in ((client, accepted), (accepted, client)):
            sender = threading.Thread(target=source.sendall, args=(data,))
            sender.start()
            got = bytearray()
            while len(got) < len(data):
                got += target.recv(1 << 20)
            sender.join()
            assert got == data
    return str(peer[0])


class TestNat:
    def test_guests_reach_a_server_outside(
        self, harness: Harness, tap: Port, host: Namespace, outside: Namespace, network: str
    ) -> None:
        """Under the host's address; nobody outside reaches them; afterwards the host is as it was."""
        before = snapshot()
        set_up(plan(network, nat=True))
        assert tables() == [f"table ip hostd.{network.replace('/', '.')}"]
        with guest(harness, tap, "10.9.0.2", "10.9.0.1") as one:
            with bound(outside, socket.SOCK_STREAM, (SERVER, 0)) as server, bound(one, socket.SOCK_STREAM) as client:
                assert exchange(client, server, SERVER) == OUT
            with outside.entered(), IPRoute() as routes:
                routes.route("add", dst="10.9.0.0/24", gateway=OUT)
            with (
                bound(outside, socket.SOCK_DGRAM) as stranger,
                bound(one, socket.SOCK_DGRAM, ("10.9.0.2", PORT)) as inner,
            ):
                inner.settimeout(0.1)
                stranger.sendto(b"let me in", ("10.9.0.2", PORT))
                with pytest.raises(TimeoutError):
                    inner.recv(100)
            with bound(host, socket.SOCK_STREAM, ("10.9.0.1", 0)) as server, bound(one, socket.SOCK_STREAM) as client:
                assert exchange(client, server, "10.9.0.1") == "10.9.0.2"
        take_down(network)
        assert snapshot() == before

    def test_a_guests_wrong_source_stays_inside(
        self, harness: Harness, tap: Port, outside: Namespace, network: str
    ) -> None:
        set_up(plan(network, nat=True))
        with guest(harness, tap, "10.9.0.2", "10.9.0.1") as one:
            with one.entered():
                up("eth0", "203.0.113.9/32")
            with (
                bound(outside, socket.SOCK_DGRAM, (SERVER, PORT)) as server,
                bound(one, socket.SOCK_DGRAM, ("203.0.113.9", 0)) as liar,
                bound(one, socket.SOCK_DGRAM) as honest,
            ):
                liar.sendto(b"not me", (SERVER, PORT))
                honest.sendto(b"me", (SERVER, PORT))
                assert server.recvfrom(100) == (b"me", (OUT, pytest.approx(0, abs=1 << 16)))
        take_down(network)

    def test_two_networks_by_one_way_out(self, harness: Harness, tap: Port, outside: Namespace, network: str) -> None:
        """One goes, the other's guests are still let out, and not to the other network; then the host is as it was."""
        before, second = snapshot(), f"{network}-2"
        with harness.open("tap", "tap1") as tap1:
            other = UplinkPlan(second, "tap", "tap1", address=IPv4Interface("10.8.0.1/24"), nat=True)
            set_up(plan(network, nat=True))
            set_up(other)
            with (
                guest(harness, tap, "10.9.0.2", "10.9.0.1") as one,
                guest(harness, tap1, "10.8.0.2", "10.8.0.1") as two,
            ):
                with (
                    bound(one, socket.SOCK_DGRAM, ("10.9.0.2", PORT)) as inner,
                    bound(two, socket.SOCK_DGRAM) as stranger,
                ):
                    inner.settimeout(0.1)
                    stranger.sendto(b"from next door", ("10.9.0.2", PORT))
                    with pytest.raises(TimeoutError):
                        inner.recv(100)
                for namespace in (one, two):
                    with bound(outside, socket.SOCK_STREAM, (SERVER, 0)) as server, bound(namespace, 1) as client:
                        assert exchange(client, server, SERVER) == OUT
                take_down(network)
                assert forwarding("out") == "1"
                with bound(outside, socket.SOCK_STREAM, (SERVER, 0)) as server, bound(two, 1) as client:
                    assert exchange(client, server, SERVER) == OUT
            take_down(second)
        assert snapshot() == before

    def test_a_host_that_forwards_already(self, tap: Port, outside: Namespace, network: str) -> None:
        Path("/proc/sys/net/ipv4/conf/out/forwarding").write_text("1")
        before = snapshot()
        set_up(plan(network, nat=True))
        rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        assert 'iifname "out" drop' not in rules, "what it forwards besides goes on"
        take_down(network)
        assert snapshot() == before

    def test_in_another_namespace(self, harness: Harness, host: Namespace, outside: Namespace, network: str) -> None:
        """By a path, from outside of it; the caller's own is left alone."""
        with namespaces(1) as [elsewhere], elsewhere.entered():
            before = snapshot()
            with host.entered():
                there = snapshot()
                tap = harness.open("tap", "tap0")
            with tap:
                set_up(plan(network, nat=True, namespace=host.path))
                assert snapshot() == before
                with host.entered():
                    assert forwarding("out") == "1"
                take_down(network)
                with host.entered():
                    assert snapshot() == there


CHILD = """
import json, os, sys, fcntl, struct
from ipaddress import IPv4Interface
from net.uplink import UplinkPlan, set_up
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
set_up(UplinkPlan(sys.argv[1], "tap", "tap0", address=IPv4Interface("10.9.0.1/24"), nat=True))
print("done", flush=True)
sys.stdin.read()
"""


NOBODY = 65534
UNPRIVILEGED = f"""
import os, sys
from net import errors, nat, uplink, uplink_records
import pyroute2
os.setuid({NOBODY})
try:
    uplink.set_up(uplink.UplinkPlan(sys.argv[1], "packet", "lo", mtu=70000, namespace=sys.argv[2] or None))
except errors.NetError as error:
    print(error)
"""


@pytest.fixture
def owner(outside: Namespace, network: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, in the host's namespace, that has set the network's uplink up."""
    command = [sys.executable, "-c", CHILD, network]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "done\n"
            yield child
        finally:
            child.kill()


class TestCrash:
    def test_sweep_undoes_what_a_killed_process_did(
        self, outside: Namespace, network: str, request: pytest.FixtureRequest
    ) -> None:
        before = snapshot()
        child = request.getfixturevalue("owner")
        assert forwarding("out") == "1"
        assert sweep() == [], "it lives"
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert tables()
        assert sweep("some/other") == []
        assert sweep() == [network]
        assert snapshot() == before
        assert read_all() == []

    def test_the_next_owner_begins_anew(
        self, harness: Harness, outside: Namespace, network: str, request: pytest.FixtureRequest
    ) -> None:
        before = snapshot()
        child = request.getfixturevalue("owner")
        with pytest.raises(NetError, match=rf"has its uplink in process {child.pid}; stop that one first"):
            set_up(plan(network))
        child.kill()
        child.wait()
        with harness.open("tap", "tap0"):
            set_up(plan(network, nat=True))
            take_down(network)
        assert snapshot() == before

    def test_half_done(self, tap: Port, outside: Namespace, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """What fails on the way is undone at once."""
        before = snapshot()

        def fail(*_: object, **__: object) -> None:
            raise NetError("nft is not in the mood")

        monkeypatch.setattr(nat, "add_table", fail)
        with pytest.raises(NetError, match="mood"):
            set_up(plan(network, nat=True))
        assert snapshot() == before
        assert read_all() == []

    def test_a_namespace_that_is_gone(self, harness: Harness, host: Namespace, network: str) -> None:
        with namespaces(1) as [gone]:
            with gone.entered():
                tap = harness.open("tap", "tap0")
            with tap:
                set_up(plan(network, namespace=gone.path))
        take_down(network)
        assert read_all() == []

    def test_another_interface_of_the_same_name(self, harness: Harness, host: Namespace, network: str) -> None:
        """It is not what the record means."""
        with harness.open("tap", "tap0"):
            set_up(plan(network))
        with harness.open("tap", "tap0"):
            up("tap0", "10.9.0.1/24", mtu=1400)
            take_down(network)
            assert link("tap0").get_attr("IFLA_MTU") == 1400
            with IPRoute() as routes:
                assert len(routes.get_addr(index=index_of("tap0"), family=2)) == 1


class TestErrors:
    def fails(self, text: str, given: UplinkPlan) -> None:
        before = snapshot()
        with pytest.raises(NetError) as caught:
            set_up(given)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
        assert snapshot() == before

    def test_plans_that_cannot_be(self, tap: Port, network: str) -> None:
        up("lo", "10.7.0.1/24")
        self.fails("there is no interface tap9 here; see `ip link`", UplinkPlan(network, "tap", "tap9"))
        self.fails('use "tap" or "packet"', UplinkPlan(network, "bridge", "tap0"))
        self.fails("an address and NAT need a tap", UplinkPlan(network, "packet", "lo", nat=True))
        self.fails("NAT needs an address of the host", plan(network, address=None, nat=True))
        self.fails("NAT needs a way out, and there is no default route here", plan(network, nat=True))
        self.fails("there is no interface out9 here", plan(network, nat=True, way_out="out9"))
        self.fails("10.7.0.0/16 overlaps 10.7.0.1/24", plan(network, address=IPv4Interface("10.7.1.1/16")))
        self.fails("network name 'A/b' is wrong", plan("A/b"))
        self.fails("No such file or directory; see `ip netns list`", plan(network, namespace="no-such-namespace"))
        self.fails("that is no network namespace", plan(network, namespace="/dev/null"))

    def test_no_nft(self, tap: Port, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
        before = snapshot()
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setattr(nat, "PLACES", "/nowhere")
        with pytest.raises(NetError, match="NAT needs the program nft; install the package nftables"):
            set_up(plan(network, nat=True))
        monkeypatch.undo()
        assert snapshot() == before

    def test_a_spoiled_record(self, tap: Port, runtime: Path, network: str) -> None:
        set_up(plan(network))
        [record] = (runtime / "uplinks").glob("*.json")
        good = record.read_text()
        for bad in ("", "[]", json.dumps({"network": network}), good.replace('"owner"', '"order"')):
            record.write_text(bad)
            for use in (sweep, lambda: take_down(network), lambda: set_up(plan(network))):
                with pytest.raises(NetError, match=f"{record} is no record of an uplink"):
                    use()
        record.write_text(good)
        take_down(network)

    @pytest.mark.parametrize(
        ("namespace", "text"),
        [
            ("", "CAP_NET_ADMIN is needed; run it as root"),
            ("/proc/self/ns/net", "CAP_SYS_ADMIN is needed; run it as root"),
        ],
    )
    def test_without_privileges(self, host: Namespace, network: str, namespace: str, text: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix="hostd-uplink-"))
        os.chown(folder, NOBODY, NOBODY)
        command = [sys.executable, "-c", UNPRIVILEGED, network, namespace]
        environment = {**os.environ, "HOSTD_RUNTIME_DIR": str(folder)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        left = list(folder.rglob("*.json"))
        shutil.rmtree(folder)
        assert done.stdout.endswith(f"{text}\n"), done.stderr
        assert left == []
