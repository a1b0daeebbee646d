"""Foreground runs: results, order, restarts, and every way to end."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys

import pytest
from places import ROOT, Place, until

from hostd import Host
from hostd.boot.errors import ImageError
from hostd.cluster import ClusterFileError
from hostd.host import Result
from hostd.supervisor.directory import ClusterDirectory
from hostd.supervisor.errors import ClusterRunningError, SupervisorError

SLEEPERS = """
[guest.sleeper]
program = "{programs}/sleeper.c"
memory = "4MiB"
count = 2
"""
ONE = """
[guest.one]
program = "{programs}/sleeper.c"
memory = "4MiB"
args = ["1", "0"]
"""


def run(place: Place, text: str, *overrides: str) -> Result:
    with Host() as host:
        return host.run(place.file(text), overrides=overrides)


def test_guests_run_and_report(place: Place) -> None:
    result = run(place, SLEEPERS, "guest.sleeper.args=['1']", "guest.sleeper.env={A='b'}")
    assert result.ok
    assert sorted(result.guests) == ["sleeper-0", "sleeper-1"]
    for guest in result.guests.values():
        assert (guest.outcome, guest.exit_code, guest.reports["awake"]) == ("exit", 0, 1)
        assert guest.start_ns
    assert result.guests["sleeper-0"].reports["random"] != result.guests["sleeper-1"].reports["random"]
    assert result.json["start"]["guests"] == 2
    assert result.memory["per_guest_bytes"] > 0
    assert "PSS" in result.memory["how"]


def test_a_guest_that_fails_fails_the_run(place: Place) -> None:
    result = run(place, ONE, "guest.one.args=['1', '7']")
    assert not result.ok
    assert result.json["exit_code"] == 1
    assert (result.guests["one"].outcome, result.guests["one"].exit_code) == ("exit", 7)


def test_one_starts_after_the_other_runs(place: Place) -> None:
    text = ONE + '[guest.later]\nprogram = "{programs}/sleeper.c"\nargs = ["1"]\nafter = "one"\n'
    done = place.command("run", place.file(text))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("one:", "later:"))]
    assert lines.index("one: running") < lines.index("later: running")
    assert "later: waiting" in lines


def test_restart_until_it_succeeds(place: Place, tmp_path: pathlib.Path) -> None:
    counted = tmp_path / "count"
    counted.write_bytes(bytes(4096))
    text = """
    [region.count]
    file = "count"
    [guest.counter]
    program = "{programs}/counter.c"
    args = ["3"]
    restart = "on-failure"
    regions = { count = "rw" }
    """
    result = run(place, text)
    assert result.ok
    assert (result.guests["counter"].restarts, result.guests["counter"].reports["count"]) == (2, 3)
    assert counted.read_bytes()[0] == 3


def test_no_restart_without_a_policy(place: Place, tmp_path: pathlib.Path) -> None:
    (tmp_path / "count").write_bytes(bytes(4096))
    text = '[region.count]\nfile = "count"\n[guest.c]\nprogram = "{programs}/counter.c"\nregions.count = "rw"\n'
    result = run(place, text)
    assert (result.guests["c"].restarts, result.guests["c"].exit_code) == (0, 3)


def test_a_write_to_what_may_only_be_read_is_named(place: Place, tmp_path: pathlib.Path) -> None:
    book = tmp_path / "book.txt"
    book.write_bytes(b"a" * 5000)
    text = '[region.text]\nfile = "book.txt"\n[guest.s]\nprogram = "{programs}/scribbler.c"\nregions.text = "ro"\n'
    guest = run(place, text).guests["s"]
    assert guest.outcome == "fault"
    assert "region text + 0x0, mapped read-only" in guest.message
    assert "main+" in guest.message
    assert book.read_bytes() == b"a" * 5000


def test_the_check_of_the_file_judges(place: Place) -> None:
    say = (
        "import json, sys; n = len(json.load(sys.stdin)['guests']); "
        "print(json.dumps({'sentence': f'{n} guests'})); sys.exit(%d)"
    )
    for code in (0, 1):
        result = run(place, ONE, f"check.command={json.dumps(['python3', '-c', say % code])}")
        assert result.json["check"] == {"sentence": "1 guests", "ok": code == 0}
        assert result.ok == (code == 0)


def test_baselines_stand_beside_the_guests_figures(place: Place) -> None:
    result = run(place, ONE, "bench.baselines=['memcpy']")
    assert result.baseline["memcpy_bytes_per_s"] > 0


START_ERRORS = [
    (["guest.one.image=nothing.elf", "guest.one.program=[]"], ImageError, "nothing.elf: cannot be read: No such file"),
    (["guest.one.memory=8GiB", "guest.one.hugetlb=true"], SupervisorError, "guest one: .*huge"),
    (["guest.one.cpu=4000"], ClusterFileError, "guest.one.cpu: this host has no processor 4000"),
    (
        ["guest.one.memory=1000TiB"],
        ClusterFileError,
        "guest.one.memory: 1099511627776000 bytes are more than this host allows: KVM",
    ),
    (["region.r.file=none.txt"], ClusterFileError, "region.r.file: .*none.txt: cannot be read"),
    (["bench.baselines=['luck']"], ClusterFileError, "bench.baselines: baseline 'luck' is unknown"),
    (
        ["guest.one.slot=[{gpa=0, size=4096, backing='anonymous'}]"],
        ClusterFileError,
        "guest.one.slot.slot-0: 0x0 to 0x1000 overlaps the guest's memory",
    ),
    (
        ["guest.one.slot=[{gpa=0xd0000000, size=4096, backing='anonymous'}]"],
        ClusterFileError,
        "overlaps the guest's MMIO hole",
    ),
]


@pytest.mark.parametrize(("overrides", "kind", "sentence"), START_ERRORS, ids=lambda value: str(value)[:40])
def test_what_cannot_be_started_leaves_nothing(
    place: Place, overrides: list[str], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence) as raised:
        run(place, ONE, *overrides)
    assert "\n" not in str(raised.value)


def test_a_guest_after_one_that_cannot_start_is_not_waited_for(place: Place) -> None:
    text = ONE + '[guest.later]\nprogram = "{programs}/sleeper.c"\nafter = "one"\n'
    with pytest.raises(SupervisorError, match="guest one:"):
        run(place, text, "guest.one.hugetlb=true", "guest.one.memory=8GiB")


def test_the_same_cluster_twice(place: Place) -> None:
    file = place.file(SLEEPERS)
    with Host() as host:
        cluster = host.up(file)
        with pytest.raises(ClusterRunningError, match=f"cluster '{file.stem}' runs already"):
            host.run(file)
        done = place.command("run", file)
        assert done.returncode == 1
        assert done.stderr == f"hostd run: cluster '{file.stem}' runs already; end it with `hostd down {file.stem}`\n"
        cluster.down()


def foreground(place: Place, file: pathlib.Path) -> subprocess.Popen[str]:
    """Start `hostd run` and return when its guests run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hostd.cli", "run", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    sockets = ClusterDirectory(file.stem).guests
    until(lambda: len(list(sockets.glob("*.sock"))) == 2 if sockets.exists() else False)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_and_leaves_nothing(place: Place, number: signal.Signals) -> None:
    file = place.file(SLEEPERS)
    process = foreground(place, file)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert errors == f"hostd run: cluster {file.stem}: ended by {number.name} before its guests were done\n"
    assert place.leftovers() == []


def test_kill_9_on_a_run_leaves_nothing(place: Place) -> None:
    process = foreground(place, place.file("[region.r]\n" + SLEEPERS))
    process.kill()
    process.communicate(timeout=20)
    until(lambda: place.leftovers() == [])


def test_a_run_can_start_again_right_after_kill_9(place: Place) -> None:
    file = place.file("[region.r]\n" + SLEEPERS)
    process = foreground(place, file)
    process.kill()
    process.communicate(timeout=20)
    with Host() as host:
        assert host.run(file, overrides=["guest.sleeper.args=['1']"]).ok


def test_down_ends_a_foreground_run(place: Place) -> None:
    file = place.file(SLEEPERS)
    process = foreground(place, file)
    assert place.command("down", file.stem).returncode == 0
    _, errors = process.communicate(timeout=20)
    assert "ended by hostd down" in errors
    assert process.returncode == 1


def test_programs_are_compiled_once(place: Place, tmp_path: pathlib.Path) -> None:
    from hostd.supervisor.programs import compiled

    source = tmp_path / "p.c"
    source.write_text('#include "guest.h"\n#include "p.h"\nint main(void) { return CODE; }\n')
    (tmp_path / "p.h").write_text("#define CODE 1\n")
    first = compiled([source])
    when = first.stat().st_ino
    assert compiled([source]) == first
    assert first.stat().st_ino == when
    (tmp_path / "p.h").write_text("#define CODE 2\n")
    assert compiled([source]) != first


def test_a_full_disk_is_one_sentence(place: Place) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place.folder], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges")
    try:
        (place.folder / "fill").write_bytes(bytes(60000))
        file = place.file(ONE)
        for command in ("run", "up"):
            done = place.command(command, file)
            assert done.returncode == 1
            assert done.stderr == (
                f"hostd {command}: {place.folder}/clusters/{file.stem}/cluster.msgpack: "
                "No space left on device; free some space\n"
            )
        (place.folder / "fill").unlink()
        assert place.leftovers() == []
    finally:
        subprocess.run(["umount", "--lazy", place.folder], check=True)
