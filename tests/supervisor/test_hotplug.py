"""Memory, regions and a picture that a guest is given, and that are taken from it, while it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import Place, until

from hostd import Host
from hostd.control.client import ControlError
from hostd.host import Guest

MIB = 1 << 20
CLUSTER = """
[region.board]
file = "{board}"
[region.made]
size = "64KiB"
[guest.grower]
program = "{programs}/grower.c"
memory = "4MiB"
[guest.keeper]
program = "{programs}/grower.c"
args = ["keep"]
memory = "4MiB"
[guest.holder]
program = "{programs}/sleeper.c"
memory = "4MiB"
regions = { board = "rw" }
"""
LOAD = """
[region.link]
[channel.numbers]
region = "link"
[guest.canvas]
program = "{programs}/canvas.c"
memory = "4MiB"
args = ["30000"]
framebuffer = { width = 64, height = 64 }
channels = { numbers = "receive" }
[guest.numbers]
program = "{programs}/numbers.c"
memory = "4MiB"
args = ["30000"]
channels = { numbers = "send" }
"""


def cluster_text(tmp_path: Path) -> str:
    board = tmp_path / "board"
    board.write_bytes(b"from the host".ljust(4096, b"\0"))
    return CLUSTER.replace("{board}", str(board))


def state(guest: Guest) -> str:
    [found] = [one["state"] for one in guest.cluster.ps()["guests"] if one["name"] == guest.name]
    return str(found)


def has(guest: Guest, size: int) -> bool:
    return bool(guest.reports.get("plugged") == size)


def test_memory_comes_and_goes_while_the_guest_runs(place: Place, tmp_path: Path) -> None:
    file = place.file(cluster_text(tmp_path))
    with Host() as host:
        guest = host.up(file).guests["grower"]
        until(lambda: guest.reports.get("ready"))
        sizes = [16 * MIB, 4096, 2 * MIB + 8192]
        for round_ in range(3):  # Addresses and page tables are used again.
            total = 0
            for number, size in enumerate(sizes):
                told = guest.plug_memory(size, f"extra-{round_}-{number}")
                total += size
                until(lambda total=total: has(guest, total))
                words = size // 8
                assert guest.reports["sum"] == words * (words - 1) // 2
                assert next(row for row in guest.slots() if row["gpa"] == told["gpa"])["size"] == size
            for number in (1, 0, 2):
                guest.unplug(f"extra-{round_}-{number}")
            until(lambda: has(guest, 0))
            assert guest.plugged() == []
            assert not [row for row in guest.slots() if row["name"].startswith("plugged")]
        assert state(guest) == "running"
        host.attach(file.stem).down()


def test_what_a_guest_keeps_is_said_and_can_be_taken(place: Place, tmp_path: Path) -> None:
    file = place.file(cluster_text(tmp_path))
    with Host() as host:
        cluster = host.up(file)
        guest = cluster.guests["keeper"]
        told = guest.plug_memory(MIB)
        until(lambda: has(guest, MIB))
        with pytest.raises(ControlError, match=r"still holds memory-0, 0.2 s after it was asked"):
            guest.unplug("memory-0", timeout=0.2)
        assert [plug["wanted"] for plug in guest.plugged()] == [False]
        guest.unplug("memory-0", force=True)
        until(lambda: state(guest) == "ended")
        message = cluster.call("result")["guests"]["keeper"]["message"]
        assert f"page fault writing {told['gpa']:#x} (no memory there) at main+" in message
        cluster.down()


def test_a_region_is_shared_with_a_guest_that_runs(place: Place, tmp_path: Path) -> None:
    file = place.file(cluster_text(tmp_path))
    board = tmp_path / "board"
    with Host() as host:
        cluster = host.up(file)
        guest = cluster.guests["grower"]
        until(lambda: guest.reports.get("ready"))
        told = json.loads(place.command("attach", f"{file.stem}/grower", "board", "--ro", "--json").stdout)
        assert (told["size"], told["access"]) == (4096, "ro")
        until(lambda: guest.reports.get("text") == "from the host")
        assert board.read_bytes()[64:78] == bytes(14)
        assert place.command("detach", f"{file.stem}/grower", "board").returncode == 0
        until(lambda: has(guest, 0))
        guest.attach_region("board")
        until(lambda: board.read_bytes()[64:78] == b"from the guest")
        guest.unplug("board")
        assert state(guest) == "running"
        made = guest.attach_region("made", access="ro")  # Its header and directory lie before its 64 KiB.
        assert made["size"] > 64 << 10
        until(lambda: has(guest, made["size"]))
        row = next(row for row in guest.slots() if row["gpa"] == made["gpa"])
        assert (row["backing"], row["access"]) == ("region", "ro")
        magic = guest.read(made["gpa"], 8)
        assert magic != bytes(8)
        guest.unplug("made")
        with pytest.raises(ControlError, match="holder: has region board from its start on"):
            cluster.guests["holder"].attach_region("board")
        with pytest.raises(ControlError, match="has no region 'bored'"):
            guest.attach_region("bored")
        cluster.down()


def test_a_picture_is_given_to_a_guest_that_runs(place: Place, tmp_path: Path) -> None:
    file = place.file(cluster_text(tmp_path))
    with Host() as host:
        cluster = host.up(file)
        guest = cluster.guests["grower"]
        with pytest.raises(ControlError, match=r"has no frame buffer; .* hostd plug grower framebuffer"):
            guest.screenshot()
        until(lambda: guest.reports.get("ready"))
        guest.plug_framebuffer(300, 200)
        until(lambda: has(guest, 300 * 200 * 4))
        image = guest.screenshot()
        assert image.size == (300, 200)
        assert [image.getpixel(point) for point in ((0, 0), (299, 199))] == [(0, 0, 7), (43, 199, 7)]
        with pytest.raises(ControlError, match="has a frame buffer already"):
            guest.plug_framebuffer()
        guest.unplug("framebuffer")
        with pytest.raises(ControlError, match="has no frame buffer"):
            guest.screenshot()
        cluster.down()


def test_bad_input_is_one_sentence_and_harms_nothing(place: Place, tmp_path: Path) -> None:
    file = place.file(cluster_text(tmp_path))
    with Host() as host:
        cluster = host.up(file)
        guest = cluster.guests["grower"]
        until(lambda: guest.reports.get("ready"))
        guest.plug_memory(4096, "one")
        for call, sentence in (
            (lambda: guest.plug_memory(4096, "one"), "one is there already"),
            (lambda: guest.plug_memory(4097), "4097 bytes of memory; it must be a multiple of 4096"),
            (lambda: guest.plug_memory(4096, "x" * 48), "more than 47"),
            (lambda: guest.plug_framebuffer(0x10000, 1), "both must be 1 to 16384"),
            (lambda: guest.unplug("two"), "'two' was not added to it while it runs; that was: one"),
            (lambda: guest.plug_memory(1 << 40), "its page tables are full"),
        ):
            with pytest.raises(ControlError, match=sentence):
                call()
        until(lambda: has(guest, 4096))
        done = place.command("plug", f"{file.stem}/grower", "memory", "much")
        assert done.returncode != 0
        assert "SIZE" in done.stderr
        assert "Traceback" not in done.stderr
        assert "one" in place.command("plug", f"{file.stem}/grower").stdout
        assert state(guest) == "running"
        cluster.down()


def test_messages_flow_on_while_memory_comes_and_goes(place: Place, tmp_path: Path) -> None:
    with Host() as host:
        cluster = host.up(place.file(LOAD))
        rounds = 0
        while state(cluster.guests["canvas"]) == "running" and state(cluster.guests["numbers"]) == "running":
            try:
                for name in ("canvas", "numbers"):
                    cluster.guests[name].plug_memory(4 * MIB, "more")
                    cluster.guests[name].unplug("more", force=True)
            except ControlError:  # The guest came to its end just then.
                break
            rounds += 1
        assert rounds > 2
        result = cluster.wait()
        assert [guest.exit_code for guest in result.guests.values()] == [0, 0]
        assert result.guests["canvas"].reports["received"] == 30000
        cluster.down()
