"""Guests that have ended are started again by request, whatever their restart policy says."""

from __future__ import annotations

import os
import signal

import pytest
from places import Place, until

from hostd import Host
from hostd.control.client import ControlError

CLUSTER = """
[region.memory]
[channel.wire]
region = "memory"
kind = "mpsc"
size = "1KiB"
max_message = 8
[guest.a]
program = "{programs}/talker.c"
memory = "4MiB"
channels = { wire = "send" }
[guest.b]
program = "{programs}/sleeper.c"
memory = "4MiB"
"""


def test_a_guest_that_was_stopped_starts_and_sends_again(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        with cluster.region("memory") as region, region.receiver("wire") as wire:
            wire.recv(10)
            for again in range(1, 4):
                cluster.guests["a"].stop()
                before = cluster.guests["b"].result
                cluster.guests["a"].start()
                assert wire.recv(10) == bytes(8)
                result = cluster.guests["a"].result
                assert (result.outcome, result.restarts) == ("running", again)
                assert cluster.guests["b"].result.start_ns == before.start_ns
        cluster.down()


def test_all_that_have_ended_start_at_once(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER), overrides=["guest.b.count=60", "guest.b.args=['0', '3']"])
        names = [name for name in cluster.guests if name.startswith("b")]
        cluster.call("stop", guests=names)
        assert cluster.call("start") == names
        assert all(cluster.guests[name].result.outcome == "running" for name in (names[0], names[-1]))
        assert cluster.call("start") == []
        cluster.down()


def test_what_cannot_be_started_again(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        with pytest.raises(ControlError, match="guest a: cannot be started again, it is running"):
            cluster.guests["a"].start()
        with pytest.raises(ControlError, match="has no guest 'c'"):
            cluster.call("start", guests=["c"])
        cluster.down()


def test_a_guest_that_fails_at_once_has_been_started(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER), overrides=["guest.b.args=['1', '4']", "guest.b.restart='on-failure'"])
        until(lambda: cluster.guests["b"].result.restarts >= 1)
        cluster.guests["b"].stop()
        cluster.guests["b"].start()
        until(lambda: cluster.guests["b"].result.restarts >= 4)
        cluster.down()


def test_a_new_supervisor_knows_that_it_was_started_again(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER), overrides=["guest.b.restart='always'"])
        cluster.guests["b"].stop()
        cluster.guests["b"].start()
        assert cluster._client is not None
        os.kill(cluster._client.hello["process"]["pid"], signal.SIGKILL)
        pid = next(guest["pid"] for guest in cluster.ps()["guests"] if guest["name"] == "b")
        os.kill(pid, signal.SIGKILL)
        until(lambda: cluster.guests["b"].result.restarts == 2)
        cluster.down()


def test_the_command(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        assert place.command("stop", f"{cluster.name}/b").returncode == 0
        done = place.command("start", f"{cluster.name}/b")
        assert (done.returncode, done.stdout, done.stderr) == (0, "started b\n", "")
        done = place.command("start", f"{cluster.name}/b")
        assert done.returncode == 1
        assert done.stderr == "hostd start: guest b: cannot be started again, it is running\n"
        assert place.command("start", cluster.name).stdout == "started nothing: no guest has ended\n"
        cluster.down()
