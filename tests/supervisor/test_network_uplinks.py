"""Uplinks of a cluster's networks: a host program in a network namespace talks to guests; nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator

import pytest
from netns import Namespace, namespaces, needs_root
from places import Place, until

from hostd import Host
from hostd.host import BackgroundCluster
from hostd.supervisor.processes import identify
from net import uplink_records

pytestmark = needs_root

CLUSTER = """
[network.lan]
subnet = "10.7.0.0/24"
uplink = { tap = "lan0", netns = "{namespace}" }
[guest.answerer]
program = "{programs}/answerer.c"
memory = "4MiB"
networks = ["lan"]
[guest.loner]
program = "{programs}/answerer.c"
memory = "4MiB"
network.lan = { isolated = true }
[guest.asker]
program = "{programs}/asker.c"
args = ["loner"]
memory = "4MiB"
networks = ["lan"]
"""


@pytest.fixture
def host_space() -> Iterator[Namespace]:
    with namespaces(1) as [made]:
        yield made


def interfaces(space: Namespace) -> set[str]:
    with space.entered():
        return {name for _, name in socket.if_nameindex()}


def ask(space: Namespace, address: str, number: int) -> bool:
    """Ask a guest from a program of the host; tell whether it answered soon."""
    with space.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(0.2)
        try:
            link.sendto(struct.pack("<Q", number), (address, 7))
            return link.recv(100) == struct.pack("<Q", ~number & (1 << 64) - 1)
        except OSError:
            return False


def switch(cluster: BackgroundCluster) -> int:
    return int(cluster.ps()["networks"][0]["pid"])


def test_a_host_program_reaches_guests(place: Place, host_space: Namespace) -> None:
    file = place.file(CLUSTER.replace("{namespace}", str(host_space.path)))
    with Host() as host:
        cluster = host.up(file)
        addresses = {name: str(address) for name, address in cluster.networks["lan"].addresses.items()}
        assert addresses == {"answerer": "10.7.0.2", "loner": "10.7.0.3", "asker": "10.7.0.4"}
        assert "lan0" in interfaces(host_space)
        until(lambda: ask(host_space, addresses["answerer"], 1))
        until(lambda: ask(host_space, addresses["loner"], 2))
        # The isolated one is the host's alone.
        assert cluster.guests["asker"].reports.get("answers", 0) == 0

        left = switch(cluster)
        os.kill(left, signal.SIGKILL)
        until(lambda: identify(left) is None and cluster.ps()["networks"][0]["state"] == "running")
        until(lambda: ask(host_space, addresses["answerer"], 3))
        cluster.down()
    assert "lan0" not in interfaces(host_space)
    assert uplink_records.read_all() == []


def test_uplinks_of_a_cluster_that_was_killed_whole(place: Place, host_space: Namespace) -> None:
    file = place.file(CLUSTER.replace("{namespace}", str(host_space.path)))
    with Host() as host:
        cluster = host.up(file)
        until(lambda: ask(host_space, "10.7.0.2", 1))
        assert cluster._client is not None
        guests = [guest["pid"] for guest in cluster.ps()["guests"]]
        with open(f"/proc/{guests[0]}/stat") as stat:
            warm = int(stat.read().rpartition(")")[2].split()[1])
        for pid in (cluster._client.hello["process"]["pid"], switch(cluster), warm, *guests):
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: identify(pid) is None)
        assert len(uplink_records.read_all()) == 1
        again = host.up(file)
        until(lambda: ask(host_space, "10.7.0.2", 2))
        again.down()
    assert "lan0" not in interfaces(host_space)
    assert uplink_records.read_all() == []
