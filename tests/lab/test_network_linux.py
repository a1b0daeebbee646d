"""Linux guests on networks: set up without DHCP, found by name, apart from others, out by an uplink; and on when their
switch or another guest dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from netns import Namespace, namespaces, up, veth
from pyroute2 import IPRoute

from hostd import Host
from hostd.agent.link import AgentError
from hostd.bench import iperf
from hostd.host import BackgroundCluster, Completed
from hostd.supervisor.errors import NoSuchClusterError

pytestmark = pytest.mark.timeout(900)
WAIT = 400.0
PINGS = 3
SECONDS = 2
ANSWERED = 60.0
MTU = 1500
SERVER, OUT = "192.0.2.1", "192.0.2.2"

FILE = """
[cluster]
name = "linux-network"
[network.lan]
subnet = "10.7.0.0/24"
uplink = {{ tap = "lan0", netns = "{netns}" }}
nat = true
[network.other]
subnet = "10.8.0.0/24"
mtu = 4000
[guest.a]
kernel = "debian-cloud"
memory = "160MiB"
networks = ["lan"]
files = {{ {files} }}
[guest.b]
kernel = "debian-cloud"
memory = "160MiB"
networks = ["other"]
network.lan = {{ mac = "02:00:00:00:00:0b", address = "10.7.0.11" }}
files = {{ {files} }}
[guest.c]
kernel = "debian-cloud"
memory = "128MiB"
networks = ["other"]
"""


@pytest.fixture(scope="module")
def outside() -> Iterator[tuple[Namespace, Namespace]]:
    """A namespace that is the network's host, and one with a server, to which the host's default route leads."""
    with namespaces(2) as [host, server]:
        with host.entered():
            veth("out", "wire", server)
            up("out", f"{OUT}/24")
            with IPRoute() as routes:
                routes.route("add", dst="default", gateway=SERVER)
        with server.entered():
            up("wire", f"{SERVER}/24")
        yield host, server


@pytest.fixture(scope="module")
def cluster(
    outside: tuple[Namespace, Namespace], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackgroundCluster]:
    folder: Path = tmp_path_factory.mktemp("cluster")
    files = ", ".join(f'"{inside}" = "{here}"' for inside, here in iperf.files().items())
    (folder / "c.toml").write_text(FILE.format(netns=outside[0].path, files=files))
    with Host() as host:
        made = host.up(folder / "c.toml")
        try:
            yield made
        finally:
            with contextlib.suppress(NoSuchClusterError):  # The last test takes it down.
                made.down()


def run(cluster: BackgroundCluster, guest: str, command: str) -> Completed:
    return cluster.guests[guest].exec("sh", "-c", command, wait=WAIT)


def begin(cluster: BackgroundCluster, guest: str, *command: str) -> Future[Completed]:
    """Run a command meanwhile. The cluster's own connection is one thread's, an exec's is its own."""
    there = cluster.guests[guest]
    thread = ThreadPoolExecutor(1)
    try:
        return thread.submit(there.exec, *command, wait=WAIT)
    finally:
        thread.shutdown(wait=False)


def ports(cluster: BackgroundCluster) -> dict[str, Any]:
    return {port["name"]: port for port in cluster.networks["lan"].show()["switch"]["ports"]}


def pids(cluster: BackgroundCluster) -> dict[str, int]:
    return {one["name"]: one["pid"] for key in ("guests", "networks") for one in cluster.ps()[key]}


def reach(namespace: Namespace, address: str, port: int) -> bytes:
    """Return what somebody says who listens there, soon."""
    deadline = time.monotonic() + ANSWERED
    while True:
        try:
            with namespace.entered(), socket.create_connection((address, port), ANSWERED) as peer:
                said = b""
                while part := peer.recv(4096):
                    said += part
                return said
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.1)


def greeting(cluster: BackgroundCluster, namespace: Namespace, guest: str, address: str) -> bytes:
    """Have a guest say its name to a program in the namespace."""
    saying = begin(cluster, guest, "sh", "-c", f"hostname | timeout {ANSWERED:.0f} nc -l -p 8000")
    try:
        return reach(namespace, address, 8000).strip()
    finally:
        saying.result()


def more_pings(cluster: BackgroundCluster, count: int) -> None:
    """Wait until so many more pings have been answered."""

    def answered() -> int:
        return int(run(cluster, "a", "grep -c seq= /tmp/pings").stdout)

    before, deadline = answered(), time.monotonic() + ANSWERED
    while answered() < before + count:
        assert time.monotonic() < deadline, "there are no more answers"
        time.sleep(0.5)


def until_up(cluster: BackgroundCluster) -> None:
    """Wait until the network has all that it had, its uplink too."""
    deadline = time.monotonic() + ANSWERED
    while any(network["state"] != "running" for network in cluster.ps()["networks"]):
        assert time.monotonic() < deadline, cluster.ps()["networks"]
        time.sleep(0.2)


def test_interfaces_are_set_up(cluster: BackgroundCluster) -> None:
    lines = run(cluster, "b", "ip -o -4 addr; ip -o link; ip route; cat /etc/hosts").stdout.decode()
    assert "inet 10.8.0.2/24 brd 10.8.0.255" in lines
    assert "inet 10.7.0.11/24 brd 10.7.0.255" in lines
    assert re.search(r"eth\d: .*mtu 4000 .*", lines)
    assert re.search(r"eth\d: .*mtu 1500 .*link/ether 02:00:00:00:00:0b", lines)
    assert re.search(r"default via 10\.7\.0\.1 dev eth\d", lines)  # the tap's
    assert "10.7.0.2 a a.lan" in lines
    assert "10.8.0.3 c c.other" in lines


def test_guests_ping_each_other_by_name(cluster: BackgroundCluster) -> None:
    for guest, name in (("a", "b"), ("b", "a"), ("c", "b"), ("b", "c.other")):
        done = run(cluster, guest, f"ping -c 2 -W 5 {name}")
        assert done.exit_code == 0, (guest, name, done.stdout, done.stderr)
        assert b"2 packets received" in done.stdout


def test_a_guest_on_another_network_has_no_way(cluster: BackgroundCluster) -> None:
    assert b"bad address" in run(cluster, "c", "ping -c 1 -W 1 a").stderr
    assert run(cluster, "c", "ping -c 1 -W 1 10.7.0.2").exit_code != 0
    # Not even for one who claims to be there: the other network is another switch.
    add = "ip addr add 10.7.0.99/24 dev eth0"
    done = run(cluster, "c", f"{add}; ping -c 2 -W 1 10.7.0.2; ip addr del 10.7.0.99/24 dev eth0")
    assert b"0 packets received" in done.stdout


def test_tcp_is_carried_unsegmented_both_ways(cluster: BackgroundCluster) -> None:
    assert run(cluster, "b", "iperf3 -s -D").exit_code == 0
    for reverse, sender in ((False, "a"), (True, "b")):
        before = ports(cluster)
        done = cluster.guests["a"].exec(*iperf.client("b", SECONDS, reverse=reverse), wait=WAIT)
        assert done.exit_code == 0, done.stdout
        after = ports(cluster)
        sent = json.loads(done.stdout)["end"]["sum_received"]["bytes"]
        assert sent > 100 * MTU
        frames, size = (
            after[sender]["counters"][key] - before[sender]["counters"][key] for key in ("frames_in", "bytes_in")
        )
        assert size > sent
        # The longest frame without segmentation offload has MTU + 14 bytes.
        assert size / frames > 4 * MTU, (size, frames)
        assert after[sender]["counters"]["drops"]["unfit"] == 0


def test_the_host_reaches_guests(cluster: BackgroundCluster, outside: tuple[Namespace, Namespace]) -> None:
    assert greeting(cluster, outside[0], "a", "10.7.0.2") == b"a"


def test_guests_get_out(cluster: BackgroundCluster, outside: tuple[Namespace, Namespace]) -> None:
    with outside[1].entered():
        listener = socket.create_server((SERVER, 8001))
    listener.settimeout(WAIT)
    asked: list[object] = []

    def serve() -> None:
        peer, address = listener.accept()
        with peer:
            asked.append((peer.recv(100), address[0]))
            peer.sendall(b"welcome")

    with listener:
        serving = threading.Thread(target=serve)
        serving.start()
        done = run(cluster, "a", f"echo from a | timeout {ANSWERED:.0f} nc {SERVER} 8001")
        serving.join()
    assert done.stdout == b"welcome"
    assert asked == [(b"from a\n", OUT)]  # as the host itself
    # Who is on another network has no way, and nobody comes in.
    assert run(cluster, "c", f"nc -w 1 {SERVER} 8001 </dev/null").exit_code != 0


def test_pings_go_on_when_the_switch_is_killed(cluster: BackgroundCluster) -> None:
    before = pids(cluster)
    assert run(cluster, "a", "setsid ping b > /tmp/pings 2>&1 & echo $! > /tmp/pinging").exit_code == 0
    more_pings(cluster, PINGS)
    os.kill(before["lan"], signal.SIGKILL)
    # The very same ping goes on. How soon is a matter of speed, and this is where there is little of it.
    more_pings(cluster, PINGS)
    assert run(cluster, "a", "kill $(cat /tmp/pinging)").exit_code == 0
    until_up(cluster)
    after = pids(cluster)
    assert after.pop("lan") != before.pop("lan")
    assert after == before


def test_a_guest_that_is_killed_in_full_traffic_harms_nobody(
    cluster: BackgroundCluster, outside: tuple[Namespace, Namespace]
) -> None:
    before = pids(cluster)
    sent = ports(cluster)["a"]["counters"]["bytes_in"]
    loading = begin(cluster, "a", "iperf3", "-c", "b", "-t", "600", "--bidir")
    deadline = time.monotonic() + ANSWERED
    while ports(cluster)["a"]["counters"]["bytes_in"] - sent < 10 << 20:
        assert not loading.done(), loading.result()
        assert time.monotonic() < deadline, "there is no traffic"
        time.sleep(0.1)
    os.kill(before["a"], signal.SIGKILL)
    with pytest.raises(AgentError):
        loading.result()
    assert cluster.wait("a", timeout=ANSWERED).guests["a"].outcome == "killed"
    assert b"2 packets received" in run(cluster, "c", "ping -c 2 -W 5 b").stdout
    assert greeting(cluster, outside[0], "b", "10.7.0.11") == b"b"
    assert {name: pid for name, pid in pids(cluster).items() if name != "a"} == {
        name: pid for name, pid in before.items() if name != "a"
    }
    assert [port["quarantined"] for port in ports(cluster).values()] == [None] * 3
    assert not ports(cluster)["a"]["front"]["connected"]


def test_nothing_is_left_of_an_uplink(cluster: BackgroundCluster, outside: tuple[Namespace, Namespace]) -> None:
    forwarding = "/proc/sys/net/ipv4/conf/out/forwarding"

    def there() -> tuple[list[str], list[str], str]:
        with outside[0].entered():
            tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
            return sorted(name for _, name in socket.if_nameindex()), tables.splitlines(), Path(forwarding).read_text()

    assert there() == (["lan0", "lo", "out"], ["table ip hostd.linux-network.lan"], "1\n")
    cluster.down()
    assert there() == (["lo", "out"], [], "0\n")
