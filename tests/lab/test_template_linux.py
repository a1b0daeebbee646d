"""Linux guests frozen into templates, and clones that go on from there."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd import Host
from hostd.host import BackgroundCluster, Completed
from hostd.templates import Template, find

pytestmark = pytest.mark.timeout(900)
WAIT = 400.0
FILE = """
[cluster]
name = "linux-template"
[network.lan]
subnet = "10.9.0.0/24"
[guest.debian]
kernel = "debian-cloud"
root = "debian"
memory = "192MiB"
[guest.peer]
kernel = "debian-cloud"
memory = "128MiB"
networks = ["lan"]
"""
SEEN = """
hostname; cat /run/hostd/name /run/hostd/generation
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
date +%s; cat /root/mark; cat /proc/$(cat /root/pid)/comm
"""


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("templates")
    # Not a folder of pytest's: a Unix socket's path has at most 107 bytes.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ht") as runtime:
        patch.setenv("HOSTD_RUNTIME_DIR", runtime)
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        yield folder


@pytest.fixture(scope="module")
def templates(folders: Path) -> tuple[float, Template, Template]:
    """Seconds from where a cluster of two is up until an agent that boots answers, and a template of each guest."""
    file = folders / "templates.toml"
    file.write_text(FILE)
    with Host() as host:
        cluster = host.up(file)
        began = time.monotonic()
        try:
            guest = cluster.guests["debian"]
            done = guest.exec("true", wait=WAIT)
            boot = time.monotonic() - began
            assert done.exit_code == 0
            guest.exec(
                "sh", "-c", "setsid sleep 100000 >/dev/null 2>&1 & echo $! > /root/pid; echo before > /root/mark"
            )
            command = [sys.executable, "-m", "hostd.cli", "template", f"{cluster.name}/debian", "debian"]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            assert made.returncode == 0, made.stderr
            assert guest.exec("cat", "/root/mark").stdout == b"before\n", "it goes on, too"
            peer = cluster.guests["peer"]
            assert peer.exec("ping", "-c", "1", "peer", wait=WAIT).exit_code == 0
            second = peer.template("peer")
        finally:
            cluster.down()
    return boot, find("debian"), second


def see(cluster: BackgroundCluster, name: str) -> list[str]:
    done: Completed = cluster.guests[name].exec("sh", "-c", SEEN, wait=WAIT)
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode().split()


def test_clones_of_a_debian_guest_go_on_each_as_itself(templates: tuple[float, Template, Template]) -> None:
    boot, template, _ = templates
    assert template.kind == "linux"
    with Host() as host:
        clones = host.up_from("debian", 2)
        began = time.monotonic()
        try:
            assert clones.guests["debian-0"].exec("true", wait=WAIT).exit_code == 0
            answered = time.monotonic() - began
            first = see(clones, "debian-0")
            second = see(clones, "debian-1")
            print(f"from running to the first answer: a boot {boot:.1f} s, a clone {answered:.1f} s")
            now = time.time()
            for seen, name in ((first, "debian-0"), (second, "debian-1")):
                assert seen[:2] == [name, name]
                assert abs(int(seen[4]) - now) < 60
                assert seen[5:] == ["before", "sleep"], "files and processes are the template's"
            assert first[2] != second[2], "generations"
            assert first[3] != second[3], "random numbers"
            shared = [row for row in clones.guests["debian-0"].slots() if row["backing"] == "image"]
            resident, own = (sum(row[key] for row in shared) for key in ("resident", "private"))
            allocated = sum(path.stat().st_blocks * 512 for path in [template.memory_file])
            print(f"of {allocated >> 10} KiB in the template it touched {resident >> 10} and made {own >> 10} its own")
            assert own < allocated / 10, "at least 90 % of the template's pages are shared"
        finally:
            clones.down()


def test_clones_on_a_network_have_addresses_of_their_own_and_reach_each_other(
    templates: tuple[float, Template, Template],
) -> None:
    with Host() as host:
        clones = host.up_from("peer", 2)
        try:
            told = []
            for name in ("peer-0", "peer-1"):
                done = clones.guests[name].exec("ip", "addr", wait=WAIT)
                text = done.stdout.decode()
                told.append((re.findall(r"link/ether (\S+)", text), re.findall(r"inet (10\.9\.\S+)", text)))
            assert told[0][0] != told[1][0]
            assert told[0][1] != told[1][1]
            assert all(len(macs) == len(addresses) == 1 for macs, addresses in told)
            for name, other in (("peer-0", "peer-1"), ("peer-1", "peer-0")):
                done = clones.guests[name].exec("ping", "-c", "3", "-w", "60", other)
                assert done.exit_code == 0, (done.stdout, told)
        finally:
            clones.down()
