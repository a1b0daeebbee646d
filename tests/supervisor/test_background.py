"""Background clusters: guests that outlive the command and the supervisor, and that go without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from places import LIMIT, ROOT, Place, until

from hostd import Host
from hostd.control.client import Client, ControlError
from hostd.host import BackgroundCluster
from hostd.supervisor.directory import ClusterDirectory
from hostd.supervisor.errors import NoSuchClusterError, SupervisorError
from hostd.supervisor.processes import identify

CLUSTER = """
[region.memory]
size = "64KiB"
[guest.a]
program = "{programs}/sleeper.c"
memory = "4MiB"
regions = { memory = "rw" }
[guest.b]
program = "{programs}/sleeper.c"
memory = "4MiB"
regions = { memory = "ro" }
"""


def states(cluster: BackgroundCluster) -> dict[str, str]:
    return {guest["name"]: guest["state"] for guest in cluster.ps()["guests"]}


def pids(cluster: BackgroundCluster) -> dict[str, int]:
    return {guest["name"]: guest["pid"] for guest in cluster.ps()["guests"]}


def kill_supervisor(cluster: BackgroundCluster) -> None:
    assert cluster._client is not None
    pid = cluster._client.hello["process"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: identify(pid) is None)


def parent_of(pid: int) -> int:
    return psutil.Process(pid).ppid()


def test_up_ps_down(place: Place) -> None:
    with Host() as host:
        name = host.up(place.file(CLUSTER)).name
    with Host() as host:
        [cluster] = host.clusters()
        assert cluster.name == name
        assert states(cluster) == {"a": "running", "b": "running"}
        until(lambda: "awake" in cluster.guests["a"].reports)
        cluster.down()
        assert place.leftovers() == []
        with pytest.raises(NoSuchClusterError):
            host.attach(name)


def test_kill_9_on_a_guest_is_reported_and_the_others_go_on(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        until(lambda: "awake" in cluster.guests["a"].reports)
        os.kill(pids(cluster)["a"], signal.SIGKILL)
        result = cluster.wait("a", timeout=5).guests["a"]
        assert (result.outcome, result.exit_code) == ("killed", 137)
        assert result.message == "guest a: its process was killed by SIGKILL"
        assert result.reports["awake"] == 1
        assert states(cluster) == {"a": "ended", "b": "running"}
        cluster.down()


def test_a_killed_guest_is_started_again(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER), overrides=["guest.a.restart=on-failure"])
        before = pids(cluster)
        cluster.guests["a"].kill()
        until(lambda: states(cluster)["a"] == "running" and pids(cluster)["a"] != before["a"])
        assert cluster.result().guests["a"].restarts == 1
        cluster.guests["a"].stop()
        assert states(cluster)["a"] == "ended"
        assert cluster.result().guests["a"].outcome == "killed"
        assert pids(cluster)["b"] == before["b"]
        cluster.down()


def test_guests_outlive_their_supervisor(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        before = pids(cluster)
        kill_supervisor(cluster)
        assert all(os.path.exists(f"/proc/{pid}") for pid in before.values())
        assert pids(cluster) == before
        assert states(cluster) == {"a": "running", "b": "running"}
        until(lambda: "awake" in cluster.guests["b"].reports)
        cluster.guests["a"].stop()
        assert states(cluster) == {"a": "ended", "b": "running"}
        kill_supervisor(cluster)
        assert cluster.result().guests["a"].message == "guest a: stopped"
        cluster.down()


def test_a_guest_that_ends_without_a_supervisor_is_not_lost(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER), overrides=["guest.a.args=['1', '5']"])
        before = pids(cluster)
        kill_supervisor(cluster)
        os.kill(before["b"], signal.SIGKILL)
        time.sleep(1.2)
        result = cluster.wait(timeout=10)
        assert (result.guests["a"].outcome, result.guests["a"].exit_code) == ("exit", 5)
        assert result.guests["b"].outcome == "killed"
        cluster.down()


def test_supervisor_and_warm_parent_killed(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER), overrides=["guest.b.restart=always"])
        before = pids(cluster)
        parent = parent_of(before["a"])
        kill_supervisor(cluster)
        os.kill(parent, signal.SIGKILL)
        assert pids(cluster) == before
        os.kill(before["b"], signal.SIGKILL)
        until(lambda: states(cluster)["b"] == "running" and pids(cluster)["b"] not in (None, before["b"]))
        assert pids(cluster)["a"] == before["a"]
        cluster.down()


def test_the_warm_parent_killed(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER), overrides=["guest.b.restart=always"])
        before = pids(cluster)
        os.kill(parent_of(before["a"]), signal.SIGKILL)
        os.kill(before["b"], signal.SIGKILL)
        until(lambda: states(cluster)["b"] == "running" and pids(cluster)["b"] not in (None, before["b"]))
        os.kill(before["a"], signal.SIGKILL)
        assert cluster.wait("a", timeout=5).guests["a"].outcome == "killed"
        cluster.down()


def test_down_after_everything_was_killed(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        before = pids(cluster)
        parent = parent_of(before["a"])
        kill_supervisor(cluster)
        for pid in (parent, *before.values()):
            os.kill(pid, signal.SIGKILL)
        assert {guest.outcome for guest in cluster.result().guests.values()} == {"killed"}
        cluster.down()


def test_up_that_cannot_be_leaves_nothing(place: Place) -> None:
    with Host() as host, pytest.raises(SupervisorError, match=r"guest a: .*huge"):
        host.up(place.file(CLUSTER), overrides=["guest.a.hugetlb=true", "guest.a.memory=8GiB"])
    assert place.leftovers() == []


def test_slots_and_memory_of_a_running_guest(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        rows = {row["name"]: row for row in cluster.guests["b"].slots()}
        assert rows["region memory"]["access"] == "ro"
        code = rows["image.0"]
        assert code["backing"] == "image"
        assert code["private"] == 0
        assert code["shared"] == code["resident"] > 0
        assert rows["low"]["private"] > 0
        assert cluster.guests["b"].read(code["gpa"], 16) == cluster.guests["a"].read(code["gpa"], 16) != bytes(16)
        with pytest.raises(ControlError, match="guest b: read"):
            cluster.guests["b"].read(0x90_0000_0000, 16)
        cluster.guests["b"].stop()
        with pytest.raises(ControlError, match="guest b: is not running"):
            cluster.guests["b"].slots()
        with pytest.raises(ControlError, match="has no guest 'c'; there are a, b"):
            cluster.call("slots", guest="c")
        cluster.down()


def test_a_supervisor_killed_while_it_starts_guests(place: Place) -> None:
    file = place.file(CLUSTER)
    command = [sys.executable, "-m", "hostd.cli", "up", str(file), "--set", "guest.b.count=30"]
    up = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    sockets = ClusterDirectory(file.stem).guests
    until(lambda: sockets.exists() and len(list(sockets.glob("*.sock"))) >= 5)
    with Client(ClusterDirectory(file.stem).control) as client:
        os.kill(client.hello["process"]["pid"], signal.SIGKILL)
    assert up.wait(LIMIT) == 1
    with Host() as host:
        cluster = host.attach(file.stem)
        until(lambda: set(states(cluster).values()) == {"running"})
        assert len(states(cluster)) == 31
        cluster.down()
