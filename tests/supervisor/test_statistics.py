"""What `hostd stats` says of guests whose doings are known."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

from places import ROOT, Place, until

from hostd import Host

CLUSTER = """
[guest.busy]
program = "{programs}/busy.c"
args = ["200"]
memory = "8MiB"
[guest.idle]
program = "{programs}/sleeper.c"
memory = "4MiB"
"""


def test_counters_say_what_the_guests_do(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        busy, idle = cluster.guests["busy"], cluster.guests["idle"]
        until(lambda: "turning" in busy.reports)
        before = busy.stats()
        time.sleep(0.5)
        after = busy.stats()
        assert before["pid"] == after["pid"]
        calls = after["vcpus"][0]["exits"]["io"] - before["vcpus"][0]["exits"]["io"]
        assert 5 < calls <= 51, "a wait of 10 ms each"
        assert after["vcpus"][0]["served"] - before["vcpus"][0]["served"] == calls
        # KVM counts those as well that it serves itself; which of its other counters it keeps is the module's to say.
        assert after["vcpus"][0]["kvm"]["exits"] - before["vcpus"][0]["kvm"]["exits"] >= calls
        assert after["memory"]["private"] >= 200 * 4096
        assert after["process"]["minor_faults"] >= 200
        quiet = idle.stats()
        time.sleep(0.3)
        woken = idle.stats()["vcpus"][0]["exits"]["io"] - quiet["vcpus"][0]["exits"]["io"]
        assert woken <= 1, "it sleeps for a second at a time"

        assert 200 <= busy.dirty(0.5)["ram"] < 260, "its pages, the stack's, no others"
        assert sum(idle.dirty(0.2).values()) == 0
        done = place.command("stats", f"{cluster.name}/busy", "--dirty", "0.2")
        assert any(line.split()[0] == "ram" and int(line.split()[1]) >= 200 for line in done.stdout.splitlines())

        shown = place.command("stats", f"{cluster.name}/busy")
        assert "exits to hostd" in shown.stdout
        assert "minor_faults" in shown.stdout
        assert "halt_wait_hist" not in shown.stdout
        told = json.loads(place.command("stats", f"{cluster.name}/busy", "--json").stdout)
        assert told["guest"] == "busy"
        assert isinstance(told["vcpus"][0]["kvm"]["halt_wait_hist"], list)
        cluster.down()


def test_a_guest_that_never_leaves_its_processor_is_counted_too(place: Place) -> None:
    """KVM hands out a vCPU's counters to nobody while it runs; a Linux guest's does so even when it sleeps."""
    with Host() as host:
        cluster = host.up(place.file('[guest.spinner]\nprogram = "{programs}/spinner.c"\n'))
        try:
            spinner = cluster.guests["spinner"]
            until(lambda: "spins" in spinner.reports)
            before = spinner.stats()
            time.sleep(0.2)
            after = spinner.stats()
            assert after["process"]["cpu_seconds"] > before["process"]["cpu_seconds"]
            assert after["vcpus"][0]["exits"] == before["vcpus"][0]["exits"], "asking doesn't stop it"
            assert after["vcpus"][0]["kvm"]["exits"] >= before["vcpus"][0]["kvm"]["exits"]
        finally:
            cluster.down()


def test_watching_shows_rates_until_it_is_interrupted(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        until(lambda: "turning" in cluster.guests["busy"].reports)
        command = [sys.executable, "-m", "hostd.cli", "stats", f"{cluster.name}/busy", "--watch", "0.2", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as watching:
            assert watching.stdout is not None
            assert watching.stderr is not None
            looks = [json.loads(watching.stdout.readline()) for _ in range(3)]
            watching.send_signal(signal.SIGINT)
            assert watching.wait(10) == 130
            assert "Traceback" not in watching.stderr.read()
        assert looks[0]["rates"] == {}
        assert looks[2]["rates"]["exits to hostd"]["io"] > 5
        cluster.down()


def test_what_is_asked_wrongly(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(CLUSTER))
        for arguments, code, sentence in (
            (("nobody",), 1, "no cluster and no guest named 'nobody' runs"),
            ((f"{cluster.name}/bussy",), 1, "has no guest 'bussy'; did you mean busy?"),
            ((f"{cluster.name}/busy", "--watch", "0"), 2, "0 is no time; give seconds"),
            ((f"{cluster.name}/busy", "--dirty", "never"), 2, "never is no time; give seconds"),
        ):
            done = place.command("stats", *arguments)
            assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
            assert "Traceback" not in done.stderr
        cluster.guests["busy"].stop()
        done = place.command("stats", f"{cluster.name}/busy")
        assert "guest busy: is not running (ended), so it counts nothing" in done.stderr
        cluster.down()
