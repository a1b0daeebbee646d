"""What the info area tells a unikernel of its networks, read back as its runtime reads it."""

from typing import Any

import pytest

from hostd.boot import ImageError
from hostd.boot._abi import ffi
from hostd.boot.address_map import lay_out
from hostd.boot.elf import Image, ImageSegment
from hostd.boot.info import info_area

IMAGE = Image("prog.elf", (ImageSegment(1 << 20, 0x1000, 0x3000, 0x3000, 5),), 1 << 20)
LAN = {
    "name": "lan",
    "mac": "02:00:00:0a:0b:0c",
    "address": "10.7.0.2",
    "prefix": 24,
    "gateway": "10.7.0.1",
    "mtu": 1500,
    "region": 1,
    "names": {"b": "10.7.0.3", "a-rather-long-name-of-a-guest-0": "10.7.0.4"},
}
BARE = LAN | {"name": "bare", "address": None, "prefix": None, "gateway": None, "mtu": 9000, "region": 2, "names": {}}


def ring(region: int, role: str, **more: Any) -> dict[str, Any]:
    numbers = {"offset": 4096, "size": 65536, "max_message": 9030, "lanes": 1, "lane": 0, "flags": 0}
    bells = {"data_bell": 0, "space_bell": 1}
    return {"name": f"{region}.{role}", "region": region, "kind": "spsc", "role": role} | numbers | bells | more


CHANNELS = [ring(0, "send"), *(ring(region, role) for region in (1, 2) for role in ("send", "receive"))]


def area(networks: list[dict[str, Any]], channels: list[dict[str, Any]]) -> bytes:
    regions = [{"name": f"r{number}", "size": 1 << 20, "access": "rw", "raw": False} for number in range(3)]
    spec = {
        "name": "a",
        "cluster": "tests",
        "memory": 4 << 20,
        "args": [],
        "env": {},
        "seed": bytes(32),
        "regions": regions,
        "channels": channels,
        "bells": 4,
        "networks": networks,
        "framebuffer": None,
    }
    return info_area(spec, lay_out(4 << 20, IMAGE, [1 << 20] * 3), 0, "prog.elf")


def test_networks_with_their_rings_and_names() -> None:
    found = ffi.from_buffer(area([LAN, BARE], CHANNELS))
    info = ffi.cast("struct guest_info *", found)
    assert info.networks.size == 2
    lan, bare = ffi.cast("struct guest_network *", found + info.networks.offset)[0:2]
    assert (ffi.string(lan.name), bytes(lan.mac)) == (b"lan", bytes([2, 0, 0, 10, 11, 12]))
    assert (lan.address, lan.prefix, lan.gateway, lan.mtu) == (0x0A070002, 24, 0x0A070001, 1500)
    assert (lan.region, lan.out, getattr(lan, "in")) == (1, 1, 2)
    hosts = ffi.cast("struct guest_host *", found + lan.hosts.offset)[0 : lan.hosts.size]
    names = {ffi.string(ffi.cast("char *", found + host.name.offset)).decode(): host.address for host in hosts}
    assert names == {"b": 0x0A070003, "a-rather-long-name-of-a-guest-0": 0x0A070004}
    assert (bare.address, bare.prefix, bare.gateway, bare.mtu, bare.hosts.size) == (0, 0, 0, 9000, 0)
    assert (bare.region, bare.out, getattr(bare, "in")) == (2, 3, 4)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([ring(1, "send")], "guest a: network lan: region 1 has 0 channels to receive frames on, not one"),
        ([ring(1, "send")] * 2, "guest a: network lan: region 1 has 2 channels to send frames on, not one"),
        (
            [ring(1, "send", max_message=1529), ring(1, "receive")],
            "guest a: network lan: messages of 1529 bytes hold no frame of its MTU of 1500; it takes 1530",
        ),
    ],
)
def test_rings_that_are_missing_or_too_small(channels: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        area([LAN], channels)


def test_too_many_names() -> None:
    names = {f"guest-{number}": "10.7.0.3" for number in range(20000)}
    with pytest.raises(ImageError, match=r"guest a: its .* and networks take \d+ bytes, more than the info area's"):
        area([LAN | {"names": names}], CHANNELS)
