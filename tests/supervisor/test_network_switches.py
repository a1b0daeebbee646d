"""Networks of clusters: real unikernels that talk UDP through switch processes, which die and come again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import LIMIT, ROOT, Place, until

from hostd import Host
from hostd.cluster import ClusterFileError
from hostd.host import BackgroundCluster
from hostd.supervisor.processes import identify

CLUSTER = """
[network.lan]
subnet = "10.7.0.0/24"
[guest.asker]
program = "{programs}/asker.c"
memory = "4MiB"
args = ["answerer"]
networks = ["lan"]
[guest.answerer]
program = "{programs}/answerer.c"
memory = "4MiB"
networks = ["lan"]
restart = "always"
"""
SECONDS = 2e9


def answers(cluster: BackgroundCluster) -> int:
    return int(cluster.guests["asker"].reports.get("answers", 0))


def more_answers(cluster: BackgroundCluster, limit: float = LIMIT) -> None:
    """Wait until the asker has been answered again, some twenty times."""
    before = answers(cluster)
    until(lambda: answers(cluster) > before + 20, limit)


def switch(cluster: BackgroundCluster, network: str = "lan") -> dict[str, Any]:
    [found] = [one for one in cluster.ps()["networks"] if one["name"] == network]
    return found


def pids(cluster: BackgroundCluster) -> dict[str, int]:
    return {guest["name"]: guest["pid"] for guest in cluster.ps()["guests"]}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: identify(pid) is None)


def supervisor_of(cluster: BackgroundCluster) -> int:
    assert cluster._client is not None
    return int(cluster._client.hello["process"]["pid"])


def test_unikernels_talk_and_are_seen(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        more_answers(cluster)
        lan = switch(cluster)
        assert (lan["state"], lan["restarts"], lan["guests"]) == ("running", 0, ["asker", "answerer"])
        assert lan["memory_bytes"] > 1 << 20
        assert lan["cpu_seconds"] > 0
        network = cluster.networks["lan"]
        assert {name: str(address) for name, address in network.addresses.items()} == {
            "asker": "10.7.0.2",
            "answerer": "10.7.0.3",
        }
        assert cluster.guests["asker"].reports["peer"] == "10.7.0.3"
        ports = {port["name"]: port for port in network.show()["switch"]["ports"]}
        assert set(ports) == {"asker", "answerer"}
        assert all(port["up"] for port in ports.values())
        # Twenty questions and answers, at least, passed both ports.
        assert min(port["counters"]["frames_in"] for port in ports.values()) > 20
        table = place.command("ps", cluster.name).stdout
        assert "asker 10.7.0.2, answerer 10.7.0.3" in table
        assert "lan" in place.command("inspect", cluster.name).stdout
        cluster.down()
        assert place.leftovers() == []


def test_a_killed_switch_is_started_again_and_guests_go_on(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        more_answers(cluster)
        before, guests = switch(cluster), pids(cluster)
        for _ in range(2):
            kill(switch(cluster)["pid"])
            more_answers(cluster)
        after = switch(cluster)
        assert (after["state"], after["restarts"], pids(cluster)) == ("running", 2, guests)
        assert after["pid"] != before["pid"]
        gap = cluster.guests["asker"].reports["gap_ns"]
        print(f"longest time without an answer: {gap / 1e6:.0f} ms")
        assert gap < SECONDS, "guests have their network again within two seconds"
        assert cluster.result().guests["answerer"].restarts == 0
        cluster.down()


def test_a_guest_that_is_started_again_has_its_place_on_the_network(place: Place) -> None:
    """Its port has no past: neither frames for the guest before, nor what that one may have spoiled."""
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        more_answers(cluster)
        kill(pids(cluster)["answerer"])
        until(lambda: cluster.result().guests["answerer"].restarts == 1)
        more_answers(cluster)
        cluster.down()


def test_a_guest_that_spoils_its_rings(place: Place, tmp_path: Path) -> None:
    """Its port is shut, nothing else; when it is started again, it has a new one."""
    (tmp_path / "runs").write_bytes(bytes(4096))
    text = CLUSTER + 'regions = { runs = "rw" }\n[region.runs]\nfile = "runs"\n'
    with Host() as host:
        cluster = host.up(place.file(text))
        seen: set[str] = set()

        def quarantined() -> bool:
            ports = cluster.networks["lan"].show()["switch"]["ports"]
            seen.update(str(port["field"]) for port in ports if port["quarantined"])
            return bool(seen)

        until(quarantined)
        print(f"quarantined: {seen}")
        more_answers(cluster)
        assert cluster.result().guests["answerer"].restarts == 1
        assert not any(port["quarantined"] for port in cluster.networks["lan"].show()["switch"]["ports"])
        assert switch(cluster)["restarts"] == 0
        cluster.down()


def test_a_switch_outlives_its_supervisor(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        more_answers(cluster)
        before, guests = switch(cluster), pids(cluster)
        kill(supervisor_of(cluster))
        more_answers(cluster)
        assert (switch(cluster)["pid"], pids(cluster)) == (before["pid"], guests)
        kill(switch(cluster)["pid"])
        more_answers(cluster)
        assert switch(cluster)["restarts"] == 1
        cluster.down()


def test_supervisor_and_switch_killed(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        more_answers(cluster)
        pid, guests = switch(cluster)["pid"], pids(cluster)
        kill(supervisor_of(cluster))
        kill(pid)
        assert pids(cluster) == guests
        more_answers(cluster)
        assert switch(cluster)["pid"] != pid
        cluster.down()


def test_a_foreground_run_that_is_killed_leaves_no_switch(place: Place) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "hostd.cli", "run", place.file(CLUSTER)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert run.stdout is not None
    assert any("asker: running" in line for line in run.stdout)
    run.kill()
    run.wait()
    run.stdout.close()
    until(lambda: place.leftovers() == [], 10)


def test_all_of_a_cluster_killed_is_swept_by_the_next(place: Place) -> None:
    with Host() as host:
        file = place.file(CLUSTER)
        cluster = host.up(file)
        more_answers(cluster)
        left = switch(cluster)["pid"]
        guests = pids(cluster)
        warm = int(Path(f"/proc/{guests['asker']}/stat").read_text().rpartition(")")[2].split()[1])
        for pid in (supervisor_of(cluster), warm, *guests.values()):
            kill(pid)
        assert identify(left) is not None, "the switch is the one that stayed"
        again = host.up(file)
        assert identify(left) is None
        more_answers(again)
        again.down()


def test_networks_are_apart(place: Place) -> None:
    """One guest on both; another, on one, finds no name of the other's, and no way there."""
    text = """
    [network.lan]
    subnet = "10.7.0.0/24"
    [network.wan]
    subnet = "10.8.0.0/24"
    [guest.both]
    program = "{programs}/answerer.c"
    args = ["lan", "wan"]
    memory = "4MiB"
    networks = ["lan", "wan"]
    [guest.here]
    program = "{programs}/asker.c"
    args = ["both", "20"]
    memory = "4MiB"
    networks = ["lan"]
    [guest.there]
    program = "{programs}/asker.c"
    args = ["both.wan", "20"]
    memory = "4MiB"
    networks = ["wan"]
    [guest.lost]
    program = "{programs}/asker.c"
    args = ["there"]
    memory = "4MiB"
    networks = ["lan"]
    """
    with Host() as host:
        cluster = host.up(place.file(text))
        result = cluster.wait("here", "there", "lost", timeout=LIMIT)
        assert (result.guests["here"].exit_code, result.guests["there"].exit_code) == (0, 0)
        assert (result.guests["here"].reports["peer"], result.guests["there"].reports["peer"]) == (
            "10.7.0.2",
            "10.8.0.2",
        )
        assert result.guests["lost"].exit_code == 1
        assert "nobody is called there here" in cluster.guests["lost"].log
        assert switch(cluster, "lan")["pid"] != switch(cluster, "wan")["pid"]
        cluster.down()


@pytest.mark.parametrize(
    ("uplink", "sentence"),
    [
        ("{ interface = 'nosuch0' }", "network.lan.uplink.interface: there is no interface nosuch0 here; there are"),
        ("{ tap = 'lo' }", "network.lan.uplink.tap: there is an interface lo already; choose another name"),
        (
            "{ tap = 't0', netns = 'no-such-space' }",
            "network.lan: network namespace no-such-space: /run/netns/no-such-space",
        ),
    ],
)
def test_an_uplink_that_cannot_be(place: Place, uplink: str, sentence: str) -> None:
    with Host() as host, pytest.raises(ClusterFileError) as raised:
        host.run(place.file(CLUSTER), overrides=[f"network.lan.uplink={uplink}"])
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
