"""Channels of a cluster: between guests, with host processes, and when one of them dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

import pytest
from places import Place, until

import shm
from hostd import Host
from hostd.host import BackgroundCluster, GuestResult
from hostd.supervisor.processes import identify

PAIR = """
[region.link]
[channel.wire]
region = "link"
[guest.listener]
program = "{programs}/listener.c"
memory = "4MiB"
channels = { wire = "receive" }
[guest.talker]
program = "{programs}/talker.c"
memory = "4MiB"
args = ["5"]
channels = { wire = "send" }
"""
ECHO = """
[region.link]
[channel.there]
region = "link"
[channel.back]
region = "link"
[guest.echo]
program = "{programs}/echo.c"
memory = "4MiB"
channels = { there = "receive", back = "send" }
"""
BARRIER = """
[region.meeting]
[channel.all]
region = "meeting"
kind = "barrier"
[guest.party]
program = "{programs}/party.c"
memory = "4MiB"
count = 3
channels = { all = "join" }
"""


def pid_of(cluster: BackgroundCluster, name: str) -> int:
    [pid] = [guest["pid"] for guest in cluster.ps()["guests"] if guest["name"] == name]
    assert pid is not None
    return int(pid)


def kill_supervisor(cluster: BackgroundCluster) -> None:
    assert cluster._client is not None
    pid = cluster._client.hello["process"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: identify(pid) is None)


def exchange(cluster: BackgroundCluster, text: bytes) -> bytes:
    """Have the guest `echo` send `text` back to this process."""
    with cluster.region("link") as link, link.sender("there") as there, link.receiver("back") as back:
        there.send(text, timeout=5)
        return bytes(back.recv(timeout=5))


def test_a_host_process_talks_to_a_guest(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(ECHO))
        assert exchange(cluster, b"hello") == b"hello"
        result = cluster.wait("echo", timeout=5).guests["echo"]
        assert (result.outcome, result.exit_code, result.reports) == ("exit", 0, {"ended": "closed"})
        cluster.down()


def test_the_peer_of_a_killed_guest_hears_of_it(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(ECHO))
        with cluster.region("link") as link, link.sender("there") as there, link.receiver("back") as back:
            there.send(b"x", timeout=5)
            assert bytes(back.recv(timeout=5)) == b"x"
            os.kill(pid_of(cluster, "echo"), signal.SIGKILL)
            with pytest.raises(shm.PeerGone):
                back.recv(timeout=5)
        cluster.down()


def test_a_guest_hears_of_a_killed_host_process(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(ECHO))
        child = os.fork()
        if child == 0:
            try:
                link = shm.Region.open(f"{cluster.name}/link")
                sender, receiver = link.sender("there"), link.receiver("back")
                sender.send(b"x", timeout=5)
                receiver.recv(timeout=5)
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert cluster.wait("echo", timeout=5).guests["echo"].reports == {"ended": "gone"}
        cluster.down()


def test_a_guest_started_again_takes_its_end_again(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(ECHO), overrides=["guest.echo.restart=on-failure"])
        with cluster.region("link") as link, link.sender("there") as there, link.receiver("back") as back:
            for number in range(3):
                before = pid_of(cluster, "echo")
                there.send(b"%d" % number, timeout=5)
                assert bytes(back.recv(timeout=5)) == b"%d" % number
                os.kill(before, signal.SIGKILL)
                until(lambda: [g for g in cluster.ps()["guests"] if g["state"] == "running" and g["pid"] != before])  # noqa: B023
            there.send(b"still", timeout=5)
            assert bytes(back.recv(timeout=5)) == b"still"
        cluster.down()


def test_channels_outlive_the_supervisor(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(ECHO))
        before = pid_of(cluster, "echo")
        kill_supervisor(cluster)
        assert pid_of(cluster, "echo") == before
        assert exchange(cluster, b"after") == b"after"
        assert cluster.wait("echo", timeout=5).guests["echo"].reports == {"ended": "closed"}
        cluster.down()


def test_a_barrier_of_guests(place: Place) -> None:
    with Host() as host:
        result = host.run(place.file(BARRIER))
        assert result.ok
        assert [guest.reports["joined"] for guest in result.guests.values()] == ["all"] * 3


def test_a_barrier_whose_party_is_killed_before_it_came(place: Place) -> None:
    late = '[guest.late]\nprogram = "{programs}/sleeper.c"\nmemory = "4MiB"\nchannels = { all = "join" }\n'
    with Host() as host:
        cluster = host.up(place.file(BARRIER + late))
        until(lambda: all("waiting" in guest.reports or name == "late" for name, guest in reports(cluster)))
        os.kill(pid_of(cluster, "late"), signal.SIGKILL)
        result = cluster.wait(timeout=5)
        assert [guest.reports.get("joined") for guest in result.guests.values()] == ["gone", "gone", "gone", None]
        cluster.down()


def reports(cluster: BackgroundCluster) -> Iterable[tuple[str, GuestResult]]:
    return cluster.result().guests.items()


def test_a_region_that_does_not_fit(place: Place) -> None:
    with Host() as host, pytest.raises(shm.ShmError, match=r"region .*link: .* don't fit in /dev/shm"):
        host.run(place.file(ECHO), overrides=["region.link.size=100TiB"])


def test_huge_pages_that_are_not_reserved(place: Place) -> None:
    with Host() as host, pytest.raises(shm.ShmError, match=r"huge|2 MiB pages"):
        host.run(place.file(ECHO), overrides=["region.link.size=512GiB", "region.link.backing=hugetlb"])


def test_a_guest_hears_of_a_killed_guest_after_all_it_sent(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(PAIR))
        until(lambda: cluster.result().guests["listener"].reports.get("received") == 5)
        os.kill(pid_of(cluster, "talker"), signal.SIGKILL)
        result = cluster.wait(timeout=5)
        assert result.guests["listener"].reports == {"listening": 1, "received": 5, "ended": "gone"}
        assert result.guests["talker"].outcome == "killed"
        cluster.down()


def test_a_sleeping_guest_uses_no_processor(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(PAIR))
        until(lambda: cluster.result().guests["listener"].reports.get("received") == 5)

        def spent() -> float:
            return float(cluster.call("inspect")["guests"]["listener"]["stats"]["cpu_seconds"])

        before = spent()
        time.sleep(1)
        # A spinning guest would have used all of it.
        assert spent() - before < 0.5
        cluster.down()
