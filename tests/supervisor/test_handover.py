"""What a Linux guest is told of its networks: interfaces, and names for its hosts file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostd.cluster.file import load
from hostd.cluster.plan import Plan, plan
from hostd.supervisor.handover import archive, hosts
from hostd.supervisor.regions import Regions

FILE = """
[network.lan]
subnet = "10.7.0.0/24"
uplink = { tap = "tap0" }
[network.wan]
subnet = "10.8.0.0/20"
mtu = 9000
gateway = "10.8.0.200"
[network.bare]
[guest.web]
kernel = "debian-cloud"
networks = ["wan", "bare", "lan"]
network.lan.mac = "02:00:00:00:00:07"
[guest.db]
kernel = "debian-cloud"
networks = ["lan", "wan"]
[guest.uni]
program = "x.c"
count = 2
networks = ["lan"]
[guest.alone]
kernel = "debian-cloud"
"""


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    file = tmp_path / "names.toml"
    file.write_text(FILE)
    return plan(load(file))


def test_names_of_all_guests_on_ones_networks(planned: Plan) -> None:
    """The short name is the address on the first network that both are on."""
    assert hosts(planned.guests["web"], planned.guests).splitlines() == [
        "127.0.0.1 localhost",
        "10.8.0.2 web web.wan",
        "10.8.0.3 db db.wan",
        "10.7.0.2 web.lan",
        "10.7.0.3 db.lan",
        "10.7.0.4 uni-0 uni-0.lan",
        "10.7.0.5 uni-1 uni-1.lan",
    ]
    assert hosts(planned.guests["db"], planned.guests).splitlines()[1:3] == [
        "10.7.0.3 db db.lan",
        "10.7.0.2 web web.lan",
    ]
    assert hosts(planned.guests["alone"], planned.guests) == "127.0.0.1 localhost alone\n"


def test_a_guests_interfaces(planned: Plan) -> None:
    guest = planned.guests["web"]
    descriptor = archive(guest, Regions(planned), "names", "", planned.guests)
    with os.fdopen(descriptor, "rb") as file:
        content = os.pread(file.fileno(), 1 << 20, 0)
    macs = {network: port.mac_text for network, port in guest.ports.items()}
    lines = (
        f"wan {macs['wan']} 10.8.0.2/20 9000 10.8.0.200\n"
        f"bare {macs['bare']} - 1500 -\n"
        "lan 02:00:00:00:00:07 10.7.0.2/24 1500 -\n"
    )
    assert b"hostd/networks\0" in content
    assert lines.encode() in content
    assert b"10.7.0.4 uni-0 uni-0.lan\n" in content
