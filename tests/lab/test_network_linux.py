"""Linux guests on networks: set up without DHCP, found by name, apart from others, and on when their switch dies."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd import Host
from hostd.host import BackgroundCluster, Completed

pytestmark = pytest.mark.timeout(900)
WAIT = 400.0
PINGS, KILLED_AT = 10, 3

FILE = """
[cluster]
name = "linux-network"
[network.lan]
subnet = "10.7.0.0/24"
gateway = "10.7.0.1"
[network.other]
subnet = "10.8.0.0/24"
mtu = 4000
[guest.a]
kernel = "debian-cloud"
memory = "128MiB"
networks = ["lan"]
[guest.b]
kernel = "debian-cloud"
memory = "128MiB"
networks = ["other"]
network.lan = { mac = "02:00:00:00:00:0b", address = "10.7.0.11" }
[guest.c]
kernel = "debian-cloud"
memory = "128MiB"
networks = ["other"]
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundCluster]:
    folder: Path = tmp_path_factory.mktemp("cluster")
    (folder / "c.toml").write_text(FILE)
    with Host() as host:
        made = host.up(folder / "c.toml")
        try:
            yield made
        finally:
            made.down()


def run(cluster: BackgroundCluster, guest: str, command: str) -> Completed:
    return cluster.guests[guest].exec("sh", "-c", command, wait=WAIT)


def test_interfaces_are_set_up(cluster: BackgroundCluster) -> None:
    lines = run(cluster, "b", "ip -o -4 addr; ip -o link; ip route; cat /etc/hosts").stdout.decode()
    assert "inet 10.8.0.2/24 brd 10.8.0.255" in lines
    assert "inet 10.7.0.11/24 brd 10.7.0.255" in lines
    assert re.search(r"eth\d: .*mtu 4000 .*", lines)
    assert re.search(r"eth\d: .*mtu 1500 .*link/ether 02:00:00:00:00:0b", lines)
    assert re.search(r"default via 10\.7\.0\.1 dev eth\d", lines)
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


def test_pings_go_on_when_the_switch_is_killed(cluster: BackgroundCluster) -> None:
    found: list[Completed] = []
    pinging = threading.Thread(target=lambda: found.append(run(cluster, "a", f"ping -c {PINGS} -W 1 b")))
    before = {guest["name"]: guest["pid"] for guest in cluster.ps()["guests"]}
    pinging.start()
    time.sleep(KILLED_AT)
    os.kill(next(one["pid"] for one in cluster.ps()["networks"] if one["name"] == "lan"), signal.SIGKILL)
    pinging.join()
    said = found[0].stdout.decode()
    answered = [int(number) for number in re.findall(r"seq=(\d+)", said)]
    print(said)
    # One a second: two seconds without a network are two that are lost.
    assert len(answered) >= PINGS - 2, said
    assert answered[-1] == PINGS - 1, said
    assert {guest["name"]: guest["pid"] for guest in cluster.ps()["guests"]} == before
