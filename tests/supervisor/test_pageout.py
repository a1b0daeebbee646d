"""Guests' memory leaves to a file or to swap while they live, and comes back as it was."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from places import ROOT, Place, until
from swapfile import alone, swapping

from hostd import Host
from hostd.cluster import ClusterFileError
from hostd.control.client import ControlError
from hostd.control.server import RequestError
from hostd.host import BackgroundCluster, Guest
from hostd.memory.swap import host_memory
from hostd.supervisor.errors import SupervisorError
from hostd.supervisor.paging_calls import chosen

MIB = 1 << 20
FILLED = 40 * MIB
CHECKER = """
[region.link]
[channel.there]
region = "link"
[channel.back]
region = "link"
[guest.full]
program = "{programs}/pages.c"
args = ["check", "40"]
memory = "48MiB"
channels = { there = "receive", back = "send" }
"""
TALKERS = """
[region.link]
[channel.wire]
region = "link"
[channel.stop]
region = "link"
[guest.receiver]
program = "{programs}/pages.c"
args = ["receive", "8"]
memory = "12MiB"
channels = { wire = "receive" }
[guest.sender]
program = "{programs}/pages.c"
args = ["send", "8"]
memory = "12MiB"
channels = { wire = "send", stop = "receive" }
"""


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[None]:
    with swapping(tmp_path):
        yield


def up(host: Host, place: Place, text: str, *overrides: str, paged: bool = True) -> BackgroundCluster:
    """Bring a cluster up whose guests have filled their memory; `paged`: which lies in files beside the cluster's."""
    names = [line[7:-1] for line in text.splitlines() if line.startswith("[guest.")]
    files = [f'guest.{name}.paged="."' for name in names] if paged else []
    cluster = host.up(place.file(text), overrides=[*files, *overrides])
    until(lambda: all("filled" in cluster.guests[name].reports for name in cluster.guests))
    return cluster


def ram(guest: Guest, key: str) -> int:
    return sum(row[key] for row in guest.slots() if row["name"] == "ram")


@contextlib.contextmanager
def checker(cluster: BackgroundCluster) -> Iterator[Callable[[], None]]:
    """Give a function that has the guest `full` look at all of its memory: every word must be as it was."""
    with cluster.region("link") as link, link.sender("there") as there, link.receiver("back") as back:

        def check() -> None:
            there.send(b"go", timeout=5)
            assert int.from_bytes(back.recv(timeout=30), "little") == FILLED // 8

        yield check


def test_memory_goes_to_a_file_and_comes_back(place: Place) -> None:
    with Host() as host, contextlib.ExitStack() as stack:
        cluster = up(host, place, CHECKER)
        guest, check = cluster.guests["full"], stack.enter_context(checker(cluster))
        assert ram(guest, "resident") >= FILLED
        done = guest.pageout()
        assert done.left == done.to_files + done.to_swap
        assert done.to_files >= FILLED * 9 // 10
        assert ram(guest, "resident") <= FILLED // 10
        assert {row["backing"] for row in guest.slots() if row["name"] == "ram"} == {"paged"}
        check()
        assert ram(guest, "resident") >= FILLED
        # Once more, a part, by the command; and again all is there.
        told = place.command("pageout", f"{cluster.name}/full", "--slot", "ram", "--bytes", "16MiB", "--json")
        assert told.returncode == 0, told.stderr
        answer = json.loads(told.stdout)
        assert answer["left"] == answer["to_files"] == 16 * MIB
        assert FILLED - 18 * MIB <= ram(guest, "resident") <= 48 * MIB - 16 * MIB
        check()
        # Nobody sees the file, and it is gone with the guest.
        assert [path.name for path in place.files.iterdir()] == [f"{cluster.name}.toml"]
        cluster.down()


@pytest.mark.usefixtures("swap")
def test_memory_goes_to_swap_and_comes_back(place: Place) -> None:
    with Host() as host, contextlib.ExitStack() as stack:
        cluster = up(host, place, CHECKER, paged=False)
        guest, check = cluster.guests["full"], stack.enter_context(checker(cluster))
        assert ram(guest, "swapped") == 0
        done = guest.pageout()
        assert done.to_swap >= FILLED * 9 // 10
        assert done.to_files <= MIB, "what its image has in the page cache"
        assert done.note is None
        assert ram(guest, "resident") <= FILLED // 10
        assert ram(guest, "swapped") >= FILLED * 9 // 10
        check()
        assert ram(guest, "swapped") <= FILLED // 10
        cluster.down()


def test_without_swap_it_is_said(place: Place) -> None:
    with Host() as host, alone(), contextlib.ExitStack() as stack:
        if host_memory().swap_total:
            pytest.skip("this host has swap")
        cluster = up(host, place, CHECKER, paged=False)
        check = stack.enter_context(checker(cluster))
        told = place.command("pageout", f"{cluster.name}/full")
        assert told.returncode == 1
        assert " 0 B to swap" in told.stdout
        assert "MiB that have no file stay in memory: this host has no swap; add some (`fallocate" in told.stderr
        assert "paged = " in told.stderr
        check()
        cluster.down()
        with pytest.raises(ClusterFileError, match=r"guest.full.ceiling: what is above it has no place.* no swap"):
            host.run(place.file(CHECKER), overrides=["guest.full.ceiling=8MiB"])


def test_messages_go_on_and_none_is_lost(place: Place) -> None:
    with Host() as host:
        cluster = up(host, place, TALKERS)
        guests = list(cluster.guests.values())
        left = dict.fromkeys(cluster.guests, 0)
        with cluster.region("link") as link, link.sender("stop") as stop:
            for _ in range(8):
                before = messages(cluster)
                for guest in guests:
                    left[guest.name] += guest.pageout().left
                until(lambda before=before: min(messages(cluster)) > max(before))
            stop.send(b"stop", timeout=5)
            result = cluster.wait(timeout=30)
        assert min(left.values()) >= 8 * MIB
        received, sent = result.guests["receiver"], result.guests["sender"]
        assert (received.outcome, sent.outcome) == ("exit", "exit"), f"{received.message} {sent.message}"
        assert received.reports["messages"] == sent.reports["messages"] > 0
        cluster.down()


def messages(cluster: BackgroundCluster) -> list[int]:
    """Return how many messages each guest has seen, as it last reported."""
    return [int(guest.reports.get("messages", 0)) for guest in cluster.result().guests.values()]


def test_a_ceiling_holds_and_all_is_there(place: Place) -> None:
    ceiling = 8 * MIB
    with Host() as host, contextlib.ExitStack() as stack:
        cluster = up(host, place, CHECKER, f"guest.full.ceiling={ceiling}")
        guest, check = cluster.guests["full"], stack.enter_context(checker(cluster))
        for _ in range(2):
            until(lambda: sum(row["resident"] for row in guest.slots() if row["backing"] == "paged") <= ceiling)
            check()
        paging = cluster.call("inspect")["guests"]["full"]["stats"]["paging"]
        assert paging["ceiling"] == ceiling
        assert paging["sent"] >= 2 * (FILLED - ceiling)
        cluster.down()


def test_what_can_not_leave_is_said(place: Place) -> None:
    with Host() as host, contextlib.ExitStack() as stack:
        cluster = up(host, place, CHECKER, "guest.full.lock=true", paged=False)
        guest, check = cluster.guests["full"], stack.enter_context(checker(cluster))
        with pytest.raises(ControlError, match=r"full: is locked .*so its pages stay"):
            guest.pageout()
        with pytest.raises(ControlError, match="full: slot ram is locked"):
            guest.pageout("ram")
        with pytest.raises(ControlError, match=r"full: has no slot 'rum'; did you mean ram\?"):
            guest.pageout("rum")
        assert guest.pageout("link").left >= 0, "its region is not locked"
        told = place.command("pageout", f"{cluster.name}/full", "--bytes", "much")
        assert told.returncode == 2
        assert "'much' is no size" in told.stderr
        check()
        guest.stop()
        with pytest.raises(ControlError, match="full: is not running"):
            guest.pageout()
        cluster.down()


def test_a_full_disk_ends_the_guest_that_filled_it(place: Place, tmp_path: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "small"
    disk.touch()
    os.truncate(disk, 24 * MIB)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    mount = subprocess.run(["mount", "-o", "loop", disk, folder], capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr}")
    try:
        with Host() as host:
            bystander = '[guest.other]\nprogram = "{programs}/sleeper.c"\n'
            cluster = host.up(place.file(CHECKER + bystander), overrides=[f"guest.full.paged={str(folder)!r}"])
            result = cluster.wait("full", timeout=20).guests["full"]
            assert result.outcome == "error"
            assert result.message.startswith("guest full: ")
            assert "is its disk full?" in result.message
            assert cluster.guests["other"].result.outcome == "running"
            cluster.down()
            with pytest.raises(SupervisorError, match=r"guest full: .*small: no file of .* no space left on device"):
                host.up(
                    place.file(CHECKER),
                    overrides=[f"guest.full.paged={str(folder)!r}", "guest.full.overcommit=false"],
                )
    finally:
        subprocess.run(["umount", folder], check=True)


ROWS = [
    {"name": "ram", "backing": "hugetlb", "options": {"lock": False}},
    {"name": "low", "backing": "anonymous", "options": {"lock": False}},
    {"name": "region link", "backing": "region", "options": {"lock": False}},
    {"name": "screen", "backing": "device", "options": {"lock": False}},
]


def test_what_is_meant_and_what_never_leaves() -> None:
    assert [row["name"] for row in chosen("g", ROWS, None)] == ["low"]
    assert [row["name"] for row in chosen("g", ROWS, "link")] == ["region link"]
    with pytest.raises(RequestError, match="guest g: slot ram is made of huge pages, which the host never pages out"):
        chosen("g", ROWS, "ram")
    with pytest.raises(RequestError, match="guest g: slot screen is a device's memory, so its pages stay"):
        chosen("g", ROWS, "screen")


BAD = [
    (["lock=true"], "guest.full.lock: keeps pages in memory that `paged` lets go"),
    (["hugetlb=true"], "guest.full.hugetlb: takes pages that no file"),
    (["ceiling=4096"], "guest.full.ceiling: 4096 bytes are too few"),
    (["ceiling=32MiB", "limit=24MiB"], "guest.full.limit: 25165824 bytes are not above the ceiling"),
    (["ceiling=8MiB", "prefault=true"], "guest.full.prefault: touches pages that `ceiling` sends away"),
    (["paged='/dev/shm'"], "guest.full.paged: /dev/shm: is on tmpfs, which is memory itself; name a folder on a disk"),
    (["paged='nowhere'"], "guest.full.paged: .*/nowhere: no such file or directory"),
]


@pytest.mark.parametrize(("keys", "sentence"), BAD, ids=lambda value: str(value)[:30])
def test_keys_that_can_not_be(place: Place, keys: list[str], sentence: str) -> None:
    overrides = ["guest.full.paged='.'", *(f"guest.full.{key}" for key in keys)]
    with Host() as host, pytest.raises(ClusterFileError, match=sentence) as raised:
        host.run(place.file(CHECKER), overrides=overrides)
    assert "\n" not in str(raised.value)


def test_the_example_runs(place: Place) -> None:
    command = [sys.executable, "-m", "hostd.cli", "run", "examples/paged.toml", "--json"]
    command += ["--set", f"cluster.name={place.file('').stem}", "--set", 'guest.paged.args=["48", "1"]']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["guests"]["paged"]["reports"]["rounds"] == 1
