"""Commands against a cluster that runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from places import ROOT, Place, until

CLUSTER = """
[guest.a]
program = "{programs}/sleeper.c"
memory = "4MiB"
[guest.b]
program = "{programs}/sleeper.c"
memory = "4MiB"
args = ["0"]
restart = "always"
"""


def test_a_day_of_a_cluster(place: Place) -> None:
    file = place.file(CLUSTER)
    name = file.stem
    up = place.command("up", file, "--json")
    assert up.returncode == 0, up.stderr
    assert [guest["name"] for guest in json.loads(up.stdout)["guests"]] == ["a", "b"]

    [listed] = json.loads(place.command("ps", "--json").stdout)
    assert (listed["cluster"], listed["guests"][0]["state"]) == (name, "running")
    lines = place.command("ps").stdout.splitlines()
    assert lines[0].split() == ["CLUSTER", "GUEST", "STATE", "PID", "RESTARTS", "UP", "RESULT"]
    assert lines[1].split()[:3] == [name, "a", "running"]

    until(lambda: "a sleeps" in place.command("logs", name).stdout)
    assert place.command("logs", "a").stdout == "a sleeps\n"
    assert "a | a sleeps" in place.command("logs", name).stdout
    assert json.loads(place.command("logs", f"{name}/a", "--json").stdout) == {"a": ["a sleeps"]}
    assert place.command("logs", "a", "-n", 0).stdout == ""

    table = json.loads(place.command("slots", "a", "--json").stdout)
    assert {"gpa", "size", "access", "backing", "resident", "shared", "private", "swapped"} <= set(table["slots"][0])
    shown = place.command("slots", f"{name}/a").stdout
    assert "image.0" in shown
    assert shown.splitlines()[0].split()[:4] == ["ADDRESS", "NAME", "ACCESS", "BACKING"]

    known = json.loads(place.command("inspect", name, "--json").stdout)
    assert known["guests"]["b"]["restart"] == "always"
    assert "stats" in known["guests"]["a"]
    assert "restart: always" in place.command("inspect", "b").stdout

    before = {guest["name"]: guest["pid"] for guest in listed["guests"]}
    assert place.command("kill", "b").stdout == "killed b\n"

    def guests() -> dict[str, dict[str, object]]:
        [cluster] = json.loads(place.command("ps", name, "--json").stdout)
        return {guest["name"]: guest for guest in cluster["guests"]}

    until(lambda: guests()["b"]["state"] == "running" and guests()["b"]["pid"] != before["b"])
    assert place.command("stop", f"{name}/b").stdout == "stopped b\n"
    assert guests()["b"]["state"] == "ended"
    assert guests()["a"]["pid"] == before["a"]
    refused = place.command("slots", "b")
    assert (refused.returncode, refused.stderr) == (
        1,
        "hostd slots: guest b: is not running (ended), so it has no slot table\n",
    )
    assert place.command("down", file).stdout == f"cluster {name} is down\n"
    assert place.leftovers() == []


def test_logs_follow_until_the_guests_have_ended(place: Place) -> None:
    file = place.file(CLUSTER)
    assert place.command("up", file).returncode == 0
    follower = subprocess.Popen(
        [sys.executable, "-m", "hostd.cli", "logs", "-f", f"{file.stem}/a"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert follower.stdout is not None
    assert follower.stdout.readline() == "a sleeps\n"
    assert place.command("stop", "a").returncode == 0
    assert follower.communicate(timeout=20)[0] == ""
    assert follower.returncode == 0
    assert place.command("down").returncode == 0


def test_a_guest_of_two_clusters_must_be_told_apart(place: Place) -> None:
    files = [place.file(CLUSTER), place.file(CLUSTER)]
    for file in files:
        assert place.command("up", file).returncode == 0
    names = sorted(file.stem for file in files)
    assert f"name one of {names[0]}/a, {names[1]}/a" in place.command("slots", "a").stderr
    assert f"several clusters run ({names[0]}, {names[1]}); name one" in place.command("down").stderr
    assert place.command("slots", f"{names[1]}/a").returncode == 0
    assert place.command("slots", names[0]).stderr.endswith(f"name one, such as {names[0]}/a\n")
    assert place.command("down", "--all").returncode == 0


def test_json_is_all_that_is_printed(place: Place) -> None:
    file = place.file(CLUSTER)
    done = place.command(
        "run",
        file,
        "--set",
        "guest.a.args=['1']",
        "--set",
        "guest.b.args=['1']",
        "--set",
        "guest.b.restart=no",
        "--json",
    )
    assert json.loads(done.stdout)["ok"] is True
    assert done.stderr == ""


def test_consoles_are_shown_behind_names(place: Place) -> None:
    file = place.file(CLUSTER)
    done = place.command(
        "run", file, "--set", "guest.a.args=['1','4']", "--set", "guest.b.args=['1']", "--set", "guest.b.restart=no"
    )
    assert done.returncode == 1
    assert "a | a sleeps" in done.stdout.splitlines()
    assert "b | b sleeps" in done.stdout.splitlines()
    assert "a: exit 4" in done.stdout.splitlines()


def test_up_that_is_interrupted_leaves_nothing(place: Place) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "hostd.cli", "up", str(place.file(CLUSTER))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    until(lambda: any(place.folder.rglob("cluster.msgpack")) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    if process.returncode == 0:
        assert place.command("down").returncode == 0
    until(lambda: place.leftovers() == [])
