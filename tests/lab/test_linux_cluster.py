"""Linux guests through cluster files: how their ends are told, and what they share once they have started."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd import Host
from hostd.host import BackgroundCluster

pytestmark = pytest.mark.timeout(900)
LIMIT = 400.0

FILE = """
[cluster]
name = "linux-ends"
[guest.fails]
kernel = "debian-cloud"
memory = "128MiB"
command = ["/bin/sh", "-c", "echo said; echo $WORD; exit 7"]
env = { WORD = "heard" }
[guest.panics]
kernel = "debian-cloud"
memory = "128MiB"
command = ["/bin/sh", "-c", "echo c > /proc/sysrq-trigger"]
[guest.reboots]
kernel = "debian-cloud"
memory = "128MiB"
command = ["/bin/sh", "-c", "echo b > /proc/sysrq-trigger"]
[guest.stays]
kernel = "debian-cloud"
memory = "128MiB"
count = 2
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundCluster]:
    folder: Path = tmp_path_factory.mktemp("cluster")
    (folder / "c.toml").write_text(FILE)
    with Host() as host:
        made = host.up(folder / "c.toml")
        try:
            yield made
        finally:
            made.down()


def test_a_commands_status_is_the_guests(cluster: BackgroundCluster) -> None:
    result = cluster.wait("fails", timeout=LIMIT).guests["fails"]
    assert (result.outcome, result.exit_code) == ("exit", 7)
    assert "its command ended with status 7" in result.message
    log = cluster.guests["fails"].log
    assert "said" in log
    assert "heard" in log


def test_a_panic_is_told_in_the_kernels_words(cluster: BackgroundCluster) -> None:
    result = cluster.wait("panics", timeout=LIMIT).guests["panics"]
    assert (result.outcome, result.exit_code) == ("panic", 134)
    assert "Kernel panic - not syncing: sysrq triggered crash" in result.message


def test_a_reboot_is_an_end_of_its_own(cluster: BackgroundCluster) -> None:
    result = cluster.wait("reboots", timeout=LIMIT).guests["reboots"]
    assert (result.outcome, result.exit_code) == ("reboot", 0)


def test_guests_of_one_kernel_share_its_code_and_constants(cluster: BackgroundCluster) -> None:
    """Once both have started and their patched code was shared again; before, some 54 % are."""
    deadline = time.monotonic() + LIMIT
    shared = dict.fromkeys(("stays-0", "stays-1"), 0.0)
    while min(shared.values()) < 0.8 and time.monotonic() < deadline:
        time.sleep(2)
        for name in shared:
            rows = cluster.guests[name].slots()
            kernel = [row for row in rows if row["name"] in ("kernel.text", "kernel.rodata")]
            shared[name] = sum(row["shared"] for row in kernel) / sum(row["size"] for row in kernel)
    print(f"shared: {shared}")
    assert min(shared.values()) >= 0.8
