"""Networks in a cluster file: what they mean, who gets which address, and the one sentence for each mistake."""

from __future__ import annotations

import pathlib
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.cluster import ClusterFileError
from hostd.cluster.addressing import mac_of
from hostd.cluster.file import from_tables, load
from hostd.cluster.model import Uplink
from hostd.cluster.networks import message_size
from hostd.cluster.plan import plan

GOOD = """
[cluster]
name = "nets"

[network.lan]
subnet = "10.7.0.0/24"
uplink = { tap = "tap7", netns = "test" }
nat = true

[network.wan]
subnet = "10.8.0.0/28"
mtu = 9000

[network.bare]
uplink = { interface = "eth0" }

[guest.web]
kernel = "debian-cloud"
networks = ["wan", "lan"]

[guest.web.network.lan]
mac = "02:00:00:00:00:05"
address = "10.7.0.9"
rate = "10MiB"
queues = 2

[guest.load]
program = "load.c"
count = 3
networks = "lan"

[guest.load.network.bare]
isolated = true
fixed = false
size = "1MiB"

[guest.late]
program = "load.c"
networks = ["lan"]
"""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "nets.toml"
    path.write_text(GOOD)
    return path


def test_what_a_good_file_means(path: pathlib.Path) -> None:
    cluster = load(path)
    lan, wan, bare = cluster.networks.values()
    assert lan.uplink == Uplink("tap", "tap7", IPv4Address("10.7.0.1"), "test")
    assert (lan.subnet, lan.mtu, lan.nat, lan.gateway) == (
        IPv4Network("10.7.0.0/24"),
        1500,
        True,
        IPv4Address("10.7.0.1"),
    )
    assert (wan.mtu, wan.uplink, wan.nat, wan.gateway) == (9000, None, False, None)
    assert (bare.subnet, bare.uplink) == (None, Uplink("packet", "eth0", None, None))
    web, load_, _ = cluster.guests.values()
    assert list(web.ports) == ["wan", "lan"]
    assert (web.ports["lan"].rate, web.ports["lan"].queues, web.ports["lan"].fixed) == (10 << 20, 2, True)
    assert (load_.ports["bare"].isolated, load_.ports["bare"].fixed, load_.ports["bare"].size) == (True, False, 1 << 20)
    assert load_.ports["lan"].size >= 16 * message_size(1500)


def test_addresses_by_rule(path: pathlib.Path) -> None:
    guests = plan(load(path)).guests
    assert {
        (name, network): str(port.address) for name, guest in guests.items() for network, port in guest.ports.items()
    } == {
        ("web", "wan"): "10.8.0.2",
        ("web", "lan"): "10.7.0.9",
        ("load-0", "lan"): "10.7.0.2",
        ("load-1", "lan"): "10.7.0.3",
        ("load-2", "lan"): "10.7.0.4",
        ("late", "lan"): "10.7.0.5",
        ("load-0", "bare"): "None",
        ("load-1", "bare"): "None",
        ("load-2", "bare"): "None",
    }
    assert str(guests["web"].ports["lan"].gateway) == "10.7.0.1"
    assert guests["web"].ports["wan"].gateway is None


def test_macs_by_rule(path: pathlib.Path) -> None:
    guests = plan(load(path)).guests
    macs = {(name, network): port.mac for name, guest in guests.items() for network, port in guest.ports.items()}
    assert macs["web", "lan"] == bytes.fromhex("020000000005")
    assert len(set(macs.values())) == len(macs)
    assert all(mac[0] & 3 == 2 for mac in macs.values()), "locally administered, nobody's group"
    # What a guest has once, it has in every later run and version.
    assert macs["late", "lan"] == mac_of("nets", "lan", "late") == bytes.fromhex("82a025f94bd0")


def test_count_needs_addresses_in_a_row(path: pathlib.Path) -> None:
    """The first free ones that are: 2 alone is no place for three."""
    guests = plan(load(path, ["guest.web.network.lan.address=10.7.0.3"])).guests
    assert [str(guests[f"load-{n}"].ports["lan"].address) for n in range(3)] == ["10.7.0.4", "10.7.0.5", "10.7.0.6"]
    assert str(guests["late"].ports["lan"].address) == "10.7.0.2"
    guests = plan(load(path, ["guest.load.network.lan.address=10.7.0.100"])).guests
    assert [str(guests[f"load-{n}"].ports["lan"].address) for n in range(3)] == [
        "10.7.0.100",
        "10.7.0.101",
        "10.7.0.102",
    ]


MISTAKES = [
    (
        "network.lan.subnet=10.7.0.5/24",
        "network.lan.subnet: '10.7.0.5/24' is an address in a subnet; the subnet is \"10.7",
    ),
    ("network.lan.subnet=10.7.0.0", "network.lan.subnet: '10.7.0.0' says no size; write \"10.7.0.0/24\""),
    ("network.lan.subnet=10.7.0.0/33", "network.lan.subnet: '10.7.0.0/33' is no IPv4 subnet"),
    ("network.lan.subnet=fe80::/64", "network.lan.subnet: 'fe80::/64' is no IPv4 subnet"),
    ("network.lan.subnet=7", "network.lan.subnet: 7 is no IPv4 subnet"),
    ("network.lan.subnet=10.7.0.0/31", "network.lan.subnet: 10.7.0.0/31 is too small for a guest"),
    ("network.lan.subnet=127.0.0.0/8", "network.lan.subnet: 127.0.0.0/8 has no addresses for guests"),
    ("network.lan.subnt=1", "network.lan.subnt: unknown key; did you mean subnet?"),
    ("network.lan.mtu=67", "network.lan.mtu: 67: must be greater than or equal to 68"),
    ("network.lan.mtu=65536", "network.lan.mtu: 65536: must be less than or equal to 65535"),
    ("network.LAN={}", "network.LAN: 'LAN' is no valid name; use small letters"),
    (f"network.{'n' * 33}={{}}", "at most 32"),
    ("network.lan.uplink=eth0", "network.lan.uplink: 'eth0' is no uplink; use \"none\""),
    ("network.lan.uplink={}", "network.lan.uplink: give one of tap"),
    ("network.lan.uplink={tap='a', interface='b'}", "network.lan.uplink: give one of tap"),
    ("network.lan.uplink={tapp='a'}", "network.lan.uplink.tapp: unknown key; did you mean tap?"),
    ("network.lan.uplink={tap='a b'}", "network.lan.uplink.tap: 'a b' is not allowed; use an interface's name"),
    ("network.lan.uplink={tap='abcdefghijklmnop'}", "network.lan.uplink.tap: 'abcdefghijklmnop'"),
    (
        "network.lan.uplink={tap='a', address='10.8.0.1'}",
        "network.lan.uplink.address: 10.8.0.1 is outside of network lan's",
    ),
    (
        "network.lan.uplink={tap='a', netns='../x'}",
        "network.lan.uplink.netns: '../x' is no name of a network namespace",
    ),
    ("network.bare.uplink.address=10.9.0.1", "network.bare.uplink.address: eth0 is there already"),
    ("network.bare.uplink={tap='a', address='10.9.0.1'}", "network.bare.uplink.address: network bare has no subnet"),
    ("network.bare.uplink={tap='tap7', netns='test'}", "network.bare.uplink: tap7 is network lan's uplink"),
    ("network.wan.nat=true", "network.wan.nat: the host translates what it routes, so the network needs a subnet and"),
    ("network.wan.gateway=10.7.0.1", "network.wan.gateway: 10.7.0.1 is outside of network wan's subnet, 10.8.0.0/28"),
    (
        "network.wan.subnet=10.7.0.128/25",
        "network.wan.subnet: 10.7.0.128/25 overlaps network lan's 10.7.0.0/24, and web is on",
    ),
    ("guest.late.networks=['lna']", "guest.late.networks: network 'lna' is not declared; did you mean lan?"),
    ("guest.late.network.lna={}", "guest.late.network.lna: network 'lna' is not declared; did you mean lan?"),
    ("guest.late.networks=['lan', 'lan']", "guest.late.networks: network 'lan' is there twice"),
    ("guest.late.networks=[1]", "guest.late.networks.0: 1: is no string"),
    ("guest.late.network.lan.adress=1", "guest.late.network.lan.adress: unknown key; did you mean address?"),
    (
        "guest.late.network.lan.address=10.8.0.2",
        "guest.late.network.lan.address: 10.8.0.2 is outside of network lan's subnet",
    ),
    (
        "guest.late.network.lan.address=10.7.0.255",
        "guest.late.network.lan.address: 10.7.0.255 is the broadcast address of",
    ),
    ("guest.late.network.lan.address=10.7.0.0", "guest.late.network.lan.address: 10.7.0.0 is the own address of"),
    ("guest.late.network.lan.address=10.7.0.300", "guest.late.network.lan.address: '10.7.0.300' is no IPv4 address"),
    (
        "guest.late.network.lan.address=10.7.0.9",
        "10.7.0.9, which would be guest late's, is guest web's; give another one",
    ),
    ("guest.late.network.lan.address=10.7.0.1", "10.7.0.1, which would be guest late's, is the host's"),
    ("guest.late.network.bare.address=10.7.0.4", "guest.late.network.bare.address: network bare has no subnet"),
    (
        "guest.load.network.lan.address=10.7.0.253",
        "guest.load.network.lan.address: 3 guests from 10.7.0.253 on go beyond",
    ),
    ("guest.load.network.lan.address=10.7.0.7", "10.7.0.9, which would be guest load-2's, is guest web's"),
    ("guest.late.network.lan.mac=02:00:00:00:00:05", "guest.late.network.lan.mac: 02:00:00:00:00:05 is guest web's"),
    (
        "guest.late.network.lan.mac=03:00:00:00:00:05",
        "guest.late.network.lan.mac: '03:00:00:00:00:05' is a group's address",
    ),
    ("guest.late.network.lan.mac=2:0:0:0:0:5", "guest.late.network.lan.mac: '2:0:0:0:0:5' is no MAC address"),
    ("guest.load.network.lan.mac=02:00:00:00:00:06", "guest.load.network.lan.mac: one address can't be the 3 guests'"),
    ("guest.late.network.lan.queues=2", "guest.late.network.lan.queues: is no key of a unikernel's port"),
    ("guest.web.network.lan.queues=9", "guest.web.network.lan.queues: 9: must be less than or equal to 8"),
    ("guest.web.network.lan.size=1MiB", "guest.web.network.lan.size: is no key of a Linux guest's port"),
    ("guest.late.network.lan.size=4KiB", "guest.late.network.lan.size: 4096 bytes hold fewer than 4 frames"),
    ("guest.late.network.lan.rate=0", "guest.late.network.lan.rate: a size of 0 holds nothing"),
    ("guest.late.network.lan.rate=2TiB", "guest.late.network.lan.rate: '2TiB': must be less than or equal to"),
    ("guest.uplink={program='x.c', networks=['lan']}", "guest.uplink: uplink is what the port of network lan's uplink"),
    ("network.lan.uplink={tap='a', netns='./x'}", "network.lan.uplink.netns: './x' is no name of a network namespace"),
    ("guest.late.network.lan.isolated=1", "guest.late.network.lan.isolated: 1: is no boolean"),
    ("guest.load.count=251", "network.lan.subnet: 10.7.0.0/24 has no room for 251 addresses in a row of guest.load"),
    ("guest.load.count=1024", "network.lan: 1026 guests are on it, but a switch has 1024 ports"),
]


@pytest.mark.parametrize(("override", "sentence"), MISTAKES, ids=[mistake[0][:60] for mistake in MISTAKES])
def test_a_mistake_is_one_sentence_with_file_and_key(path: pathlib.Path, override: str, sentence: str) -> None:
    with pytest.raises(ClusterFileError) as raised:
        plan(load(path, [override]))
    text = str(raised.value)
    assert sentence in text
    assert "\n" not in text
    assert text.startswith(f"{path}: ")


def test_subnets_that_meet_nowhere_may_be_the_same(path: pathlib.Path) -> None:
    """Two networks that no guest and no host is on together are two worlds."""
    cluster = load(path, ["network.other.subnet=10.7.0.0/24", "guest.alone={program='x.c', networks=['other']}"])
    assert str(plan(cluster).guests["alone"].ports["other"].address) == "10.7.0.2"


@given(
    prefix=st.integers(22, 30),
    fixed=st.lists(st.integers(1, 60), max_size=6, unique=True),
    groups=st.lists(st.integers(1, 40), max_size=6),
    uplink=st.booleans(),
)
def test_addresses_are_in_the_subnet_and_one_guests_each(
    prefix: int, fixed: list[int], groups: list[int], uplink: bool
) -> None:
    subnet = IPv4Network(f"10.1.0.0/{prefix}")
    guests: dict[str, object] = {"first": {"program": "x.c", "networks": ["n"]}}
    for number in fixed:
        port = {"n": {"address": str(subnet.network_address + number)}}
        guests[f"fixed-{number}"] = {"program": "x.c", "network": port}
    for number, count in enumerate(groups):
        guests[f"group-{number}"] = {"program": "x.c", "count": count, "networks": ["n"]}
    tables = {
        "network": {"n": {"subnet": str(subnet), **({"uplink": {"tap": "t"}} if uplink else {})}},
        "guest": guests,
    }
    try:
        planned = plan(from_tables(pathlib.Path("c.toml"), tables))
    except ClusterFileError:
        hosts = subnet.num_addresses - 2
        tight = 2 + len(fixed) + sum(groups) + max(groups, default=0) * len(fixed)
        assert tight > hosts or max(fixed) > hosts or 1 in fixed, "there was room"
        return
    found = [guest.ports["n"].address for guest in planned.guests.values()]
    assert len(set(found)) == len(found) == 1 + len(fixed) + sum(groups)
    for address in found:
        assert address in subnet
        assert address not in (subnet.network_address, subnet.broadcast_address)
    for number, count in enumerate(groups):
        row = [planned.guests[f"group-{number}-{index}"].ports["n"].address for index in range(count)]
        assert row == [row[0] + index for index in range(count)]
