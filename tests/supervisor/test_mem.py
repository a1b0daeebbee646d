"""A guest's memory read, written and searched while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import LIMIT, ROOT, Place, until

from hostd import Host
from hostd.control.client import ControlError
from hostd.host import BackgroundCluster

CLUSTER = f"""
[region.wire]
[channel.draws]
region = "wire"
size = "64KiB"
[guest.drawer]
program = "{ROOT}/examples/lottery.c"
args = ["draw"]
memory = "4MiB"
channels = {{ draws = "send" }}
[guest.tally]
program = "{ROOT}/examples/lottery.c"
args = ["tally"]
memory = "512MiB"
channels = {{ draws = "receive" }}
"""


@pytest.fixture
def lottery(place: Place) -> Iterator[BackgroundCluster]:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        until(lambda: "waiting" in cluster.guests["tally"].reports)
        yield cluster
        cluster.down()


def test_a_running_guest_is_read_written_and_searched(lottery: BackgroundCluster, place: Place, tmp_path: Path) -> None:
    target, guest = f"{lottery.name}/tally", lottery.guests["tally"]

    def draws() -> int:
        done = place.command("mem", "read", target, "--virtual", "tally", "8", "--json")
        return int.from_bytes(bytes.fromhex(json.loads(done.stdout)["data"]), "little")

    first = draws()
    until(lambda: draws() > first)

    # Text of the program, found where the program's file has it; by physical and virtual address alike.
    image = Path(lottery.call("inspect", guests=["tally"])["guests"]["tally"]["image"]).read_bytes()
    done = place.command("mem", "search", target, "--text", "was due", "--json")
    [address] = json.loads(done.stdout)["matches"]
    assert guest.search(b"was due", "image.1") == [address]
    assert guest.read(address, 64) == guest.read_virtual(address, 64)
    at = image.index(b"was due")
    assert guest.read(address, 64) == image[at : at + 64]
    dump = place.command("mem", "read", target, hex(address), "7").stdout
    assert dump == f"{address:016x}  77 61 73 20 64 75 65                              |was due|\n"
    whole = tmp_path / "memory"
    place.command("mem", "read", target, "0x200000", "3MiB", "--out", whole)
    assert whole.stat().st_size == 3 << 20

    # What has never been touched is still not there after a search of it all.
    ram = next(row for row in guest.slots() if row["name"] == "ram" and row["size"] > 400 << 20)
    assert guest.search(b"not in there, surely") == []
    assert next(row for row in guest.slots() if row["gpa"] == ram["gpa"])["resident"] < 1 << 20

    # Over the border of a page, of a search's piece, and where a limit says to stop.
    for place_of in (ram["gpa"] + (100 << 20) - 3, ram["gpa"] + (101 << 20) + 4093):
        guest.write(place_of, b"needle")
    assert guest.search(b"needle") == [ram["gpa"] + (100 << 20) - 3, ram["gpa"] + (101 << 20) + 4093]
    assert guest.search(b"needle", limit=1) == [ram["gpa"] + (100 << 20) - 3]
    many = ram["gpa"] + (200 << 20)
    guest.write(many, b"a" * 5000)
    assert guest.search(b"aaaa", "ram", limit=4990) == list(range(many, many + 4990))

    done = place.command("mem", "write", target, "--virtual", "enough", "--u32", "1")
    assert done.stdout.startswith("tally: 4 bytes written at 0x")
    result = lottery.wait(timeout=LIMIT)
    assert result.ok, result.json


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("read", "tally", "0xfffffff000"), "is in no slot"),
        (("read", "tally", "--virtual", "0"), "nothing is mapped at virtual address 0x0"),
        (("read", "tally", "nobody"), "'nobody' is no address and no symbol of tally"),
        (("read", "tally", "0", "many"), "'many' is no size"),
        (("read", "tally", hex(1 << 64)), "is no address: they have 64 bits"),
        (("write", "tally", "0x100000", "--u8", "1"), "guest address 0x100000 is in slot image.0, which is read-only"),
        (("write", "tally", "0x200000", "--u8", "256"), "'256' is not what was asked for"),
        (("write", "tally", "0x200000", "--hex", "abc"), "'abc' is not what was asked for"),
        (("search", "tally", "--text", "x", "--slot", "nowhere"), "it has no slot 'nowhere'; it has low, image.0"),
        (("search", "tally", "--text", ""), "a pattern has 1 to 4096 bytes"),
    ],
)
def test_what_can_not_be_is_said(
    lottery: BackgroundCluster, place: Place, arguments: tuple[str, ...], sentence: str
) -> None:
    action, guest, *rest = arguments
    done = place.command("mem", action, f"{lottery.name}/{guest}", *rest)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_requests_out_of_bounds_are_refused(lottery: BackgroundCluster) -> None:
    guest = lottery.guests["tally"]
    with pytest.raises(ControlError, match="size must be 0 to"):
        guest.read_virtual(0x100000, 1 << 30)
    with pytest.raises(ControlError, match="data must be 0 to"):
        lottery.call("write", guest="tally", address=0x200000, data="text")
    lottery.guests["tally"].stop()
    with pytest.raises(ControlError, match=r"is not running \(ended\), so it has no memory"):
        guest.search(b"x")
