"""Guests frozen into files, and guests that go on from there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import Place, until

from hostd import Host
from hostd.control.client import ControlError
from hostd.host import BackgroundCluster
from hostd.supervisor.background import attach
from hostd.templates import TemplateError, find, store

CLUSTER = """
[region.r]
[channel.out]
region = "r"
kind = "mpsc"
[guest.warm]
program = "{programs}/thawed.c"
args = ["first", "LAST"]
env = { COLOUR = "green" }
memory = "4MiB"
channels = { out = "send" }
"""
SUM = 3 * (1 << 17) * ((1 << 17) - 1) // 2


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def warm(place: Place) -> Iterator[BackgroundCluster]:
    """A guest that is ready to be frozen."""
    with Host() as host:
        cluster = host.up(place.file(CLUSTER.replace("LAST", "end")))
        until(lambda: "ready" in cluster.guests["warm"].reports)
        yield cluster
        cluster.down()


def own_name(place: Place) -> str:
    """Return a name for a template, whose clusters' leftovers are looked for."""
    place.names.append(f"{place.file('').stem}x")
    return place.names[-1]


def test_clones_go_on_each_with_its_own_identity(place: Place, warm: BackgroundCluster) -> None:
    name = own_name(place)
    template = warm.guests["warm"].template(name)
    assert template.size > 3 << 20
    assert template.disk_size < 2 << 20, "what is zero takes no room"
    memory = hashlib.sha256(template.memory_file.read_bytes()).digest()
    assert warm.guests["warm"].result.outcome == "running"
    with Host() as host:
        before = time.monotonic_ns()
        result = host.run_from(name, 5)
        after = time.monotonic_ns()
    assert result.ok
    told = {guest: ended.reports for guest, ended in result.guests.items()}
    assert list(told) == [f"{name}-{n}" for n in range(5)]
    first = warm.guests["warm"].reports
    assert all("ready" not in reports for reports in told.values()), "they don't start again"
    assert [reports["me"] for reports in told.values()] == list(told)
    assert {reports["sum"] for reports in told.values()} == {SUM}
    assert {reports["last_argument"] for reports in told.values()} == {"end"}
    assert {reports["colour"] for reports in told.values()} == {"green"}
    assert len({reports["random"] for reports in told.values()} | {first["before"]}) == 6
    assert len({reports["generation"] for reports in told.values()}) == 5
    assert all(before < reports["now"] < after for reports in told.values())
    assert hashlib.sha256(template.memory_file.read_bytes()).digest() == memory, "nobody writes to the template"


def test_clones_share_the_templates_pages_and_a_clone_can_be_frozen_again(place: Place) -> None:
    name, again = own_name(place), own_name(place)
    with Host() as host:
        cluster = host.up(place.file(CLUSTER.replace("LAST", "stay")))
        until(lambda: "ready" in cluster.guests["warm"].reports)
        done = place.command("template", f"{cluster.name}/warm", name, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["kind"] == "unikernel"
        cluster.down()  # Clones need nothing of the guest that was frozen.
        clones = host.up_from(name, 3)
        until(lambda: all("colour" in guest.reports for guest in clones.guests.values()))
        with clones.region("r") as region, region.receiver("out") as receiver:
            assert sorted(receiver.recv(timeout=10) for _ in range(3)) == [f"{name}-{n}".encode() for n in range(3)]
        one = clones.guests[f"{name}-1"]
        text = next(row for row in one.slots() if row["access"] == "ro")
        assert text["backing"] == "image"
        assert text["shared"] == text["resident"] > 0
        one.template(again)
        clones.down()
        second = host.up_from(again)
        until(lambda: "colour" in second.guests[again].reports)
        reports = second.guests[again].reports
        assert (reports["me"], reports["sum"]) == (again, SUM)
        second.down()


NETWORKED = """
[network.lan]
subnet = "10.9.0.0/24"
[guest.warm]
program = "{programs}/who.c"
memory = "4MiB"
networks = ["lan"]
"""


def test_clones_have_addresses_of_their_own_and_outlive_their_supervisor(place: Place) -> None:
    name = own_name(place)
    with Host() as host:
        cluster = host.up(place.file(NETWORKED))
        until(lambda: "ready" in cluster.guests["warm"].reports)
        cluster.guests["warm"].template(name)
        cluster.down()
        clones = host.up_from(name, 3)
        until(lambda: all("address" in guest.reports for guest in clones.guests.values()))
        told = [guest.reports for guest in clones.guests.values()]
        assert len({reports["mac"] for reports in told}) == 3
        assert len({reports["address"] for reports in told}) == 3
        guests = clones.ps()["guests"]
        planned = [int(guest["networks"]["lan"]["mac"].replace(":", ""), 16) for guest in guests]
        assert [reports["mac"] for reports in told] == planned
        pids = [guest["pid"] for guest in guests]
        os.kill(supervisor_of(clones), signal.SIGKILL)
        assert [guest["pid"] for guest in clones.ps()["guests"]] == pids
        clones.guests[f"{name}-1"].stop()
        clones.guests[f"{name}-1"].start()
        until(lambda: clones.guests[f"{name}-1"].reports.get("mac") == told[1]["mac"])
        clones.down()


def supervisor_of(cluster: BackgroundCluster) -> int:
    with attach(cluster.name) as client:
        return int(client.hello["process"]["pid"])


def test_a_cluster_file_can_name_a_template(place: Place, warm: BackgroundCluster, tmp_path: Path) -> None:
    name = own_name(place)
    warm.guests["warm"].template(name)
    file = place.file(f"""
        [guest.worker]
        template = "{name}"
        count = 2
        [guest.other]
        program = "{{programs}}/thawed.c"
        restart = "no"
        """)
    done = place.command("validate", file)
    assert done.returncode == 0, done.stderr
    with Host() as host:
        cluster = host.up(file)
        result = cluster.wait("worker-0", "worker-1", timeout=30)
        assert [result.guests[f"worker-{n}"].exit_code for n in range(2)] == [0, 0]
        cluster.down()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ('template = "nosuch"', "there is no template 'nosuch'; there are "),
        ('template = "NAME"\nmemory = "8MiB"', "guest.g.memory: comes with the template 'NAME'; remove the key"),
        ('template = "NAME"\nprogram = "x.c"', "guest.g.program: comes with the template 'NAME'; remove the key"),
        ('template = "Big"', "'Big' is not allowed; use small letters"),
    ],
)
def test_what_a_file_says_wrongly_of_a_template(
    place: Place, warm: BackgroundCluster, keys: str, sentence: str
) -> None:
    name = own_name(place)
    warm.guests["warm"].template(name)
    done = place.command("validate", place.file(f"[guest.g]\n{keys.replace('NAME', name)}"))
    assert done.returncode == 2
    assert sentence.replace("NAME", name) in done.stderr
    assert "Traceback" not in done.stderr


def test_what_can_not_be_frozen(place: Place, warm: BackgroundCluster, data: Path) -> None:
    name = own_name(place)
    with Host() as host:
        busy = host.up(
            place.file(CLUSTER.replace("thawed.c", "sleeper.c").replace("mpsc", "spsc").replace('"send"', '"receive"'))
        )
        until(lambda: busy.guests["warm"].result.outcome == "running")
        with pytest.raises(TemplateError, match="cannot name a template"):
            busy.guests["warm"].template("../x")
        with pytest.raises(ControlError, match="has no guest 'none'"):
            busy.call("freeze", guest="none", path="/nowhere")
        busy.down()
    warm.guests["warm"].template(name)
    with pytest.raises(TemplateError, match=f"there is a template {name!r} already"):
        warm.guests["warm"].template(name)
    made = find(name).made
    warm.guests["warm"].template(name, replace=True)
    assert find(name).made > made
    warm.guests["warm"].stop()
    with pytest.raises(ControlError, match=r"is not running \(ended\), so there is nothing to freeze"):
        warm.guests["warm"].template(own_name(place))
    assert [path.name for path in (data / "hostd/templates").iterdir() if path.name != ".lock"] == [name]


def test_a_template_with_an_open_channel_is_refused(place: Place) -> None:
    text = """
        [region.r]
        [channel.words]
        region = "r"
        [guest.reader]
        program = "{programs}/reader.c"
        channels = { words = "receive" }
        """
    with Host() as host:
        cluster = host.up(place.file(text))
        until(lambda: "open" in cluster.guests["reader"].reports)
        done = place.command("template", f"{cluster.name}/reader", own_name(place))
        assert done.returncode == 1
        assert "guest reader: has channel words open, and two clones can't be one end of it" in done.stderr
        cluster.down()


def damage(template: store.Template, how: str) -> None:
    file = template.folder / store.FILE
    if how == "no msgpack":
        file.write_bytes(b"\xc1 nothing")
    elif how == "short":
        file.write_bytes(file.read_bytes()[:100])
    elif how == "memory cut":
        with template.memory_file.open("r+b") as memory:
            memory.truncate(4096)
    elif how == "other processor":
        store.write(template.folder, changed(template, processor="Z80"))


def changed(template: store.Template, **values: Any) -> store.Template:
    return store.Template(**{**{key: getattr(template, key) for key in template.__dataclass_fields__}, **values})


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("no msgpack", "is damaged or of another version of hostd; make the template"),
        ("short", "is damaged or of another version of hostd; make the template"),
        ("memory cut", "the template's memory has 4096 bytes, too few for it; make the template again"),
        ("other processor", "was made on Z80, this host has "),
    ],
)
def test_a_damaged_template(place: Place, warm: BackgroundCluster, how: str, sentence: str) -> None:
    name = own_name(place)
    damage(warm.guests["warm"].template(name), how)
    done = place.command("run", "--from", name)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_templates_are_listed_and_removed(place: Place, warm: BackgroundCluster) -> None:
    name = own_name(place)
    warm.guests["warm"].template(name)
    told = json.loads(place.command("templates", "--json").stdout)
    assert [(one["name"], one["guest"]) for one in told] == [(name, f"{warm.name}/warm")]
    assert name in place.command("templates").stdout
    assert place.command("templates", "rm", name).returncode == 0
    assert json.loads(place.command("templates", "--json").stdout) == []
    done = place.command("templates", "rm", name)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"there is no template {name!r}" in done.stderr


def test_the_command_line_says_what_it_needs(place: Place) -> None:
    for arguments, sentence in (
        ((), "give a cluster file or --from TEMPLATE"),
        (("x.toml", "--from", "y"), "not both"),
        (("x.toml", "--count", "3"), "--count goes with --from"),
    ):
        done = place.command("run", *arguments)
        assert done.returncode == 2
        assert sentence in done.stderr
