"""Guests and regions on huge pages of the host."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import Place, until

from hostd import Host
from hostd.cluster.errors import ClusterFileError
from hostd.cluster.file import load
from hostd.supervisor.huge_pages import check

RESERVED = Path("/proc/sys/vm/nr_hugepages")
MIB = 1 << 20
CLUSTER = """
[region.r]
size = "2MiB"
backing = "BACKING"
[channel.out]
region = "r"
[guest.g]
program = "{programs}/filler.c"
args = ["6"]
memory = "12MiB"
channels = { out = "send" }
OPTION
"""


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Reserve 12 pages of 2 MiB, and give them back; their number is one for the whole host."""
    with (Path(tempfile.gettempdir()) / f"hostd-tests-hugepages-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = int(RESERVED.read_text())
        try:
            RESERVED.write_text(str(before + 12))
        except OSError as error:
            pytest.skip(f"huge pages cannot be reserved: {error}")
        try:
            if int(RESERVED.read_text()) < before + 12:
                pytest.skip("the host could not reserve 12 huge pages")
            yield
        finally:
            RESERVED.write_text(str(before))


def free_pages() -> int:
    return int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())


def test_memory_and_regions_on_reserved_pages(place: Place, huge_pages: None) -> None:
    free = free_pages()
    with Host() as host:
        cluster = host.up(place.file(CLUSTER.replace("BACKING", "hugetlb").replace("OPTION", "hugetlb = true")))
        until(lambda: "sum" in cluster.guests["g"].reports)
        rows = {row["name"]: row for row in cluster.guests["g"].slots() if row["backing"] == "hugetlb"}
        assert rows["ram"]["huge"] >= 6 * MIB
        region = next(row for row in cluster.guests["g"].slots() if row["name"] == "region r")
        assert region["huge"] in (2 * MIB, 4 * MIB)
        with cluster.region("r") as shared, shared.receiver("out") as out:
            assert out.recv(timeout=10) == b"filled"
        assert free_pages() < free
        told = json.loads(place.command("slots", f"{cluster.name}/g", "--json").stdout)
        assert any(row["huge"] for row in told["slots"])
        cluster.down()
    assert free_pages() == free


@pytest.mark.parametrize(("option", "huge"), [("thp = true", True), ("thp = false", False)])
def test_transparent_huge_pages(place: Place, option: str, huge: bool) -> None:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    if "[never]" in enabled:
        pytest.skip(f"this host has no transparent huge pages: {enabled.strip()}")
    with Host() as host:
        cluster = host.up(place.file(CLUSTER.replace("BACKING", "shm").replace("OPTION", option)))
        until(lambda: "sum" in cluster.guests["g"].reports)
        found = sum(row["huge"] for row in cluster.guests["g"].slots())
        assert found >= 6 * MIB if huge else found == 0
        cluster.down()


def test_asking_for_what_the_host_does_not_make(place: Place, tmp_path: Path) -> None:
    """MADV_HUGEPAGE always succeeds; so it is said beforehand where nothing would come of it."""
    linux = '[network.n]\n[guest.l]\nkernel = "debian-cloud"\nmemory = "320MiB"\nnetworks = ["n"]\nthp = true\n'
    guests = load(place.file(CLUSTER.replace("BACKING", "shm").replace("OPTION", "thp = true") + linux)).guests
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    (tmp_path / "shmem_enabled").write_text("always within_size [advise] never deny force\n")
    check(guests["l"], tmp_path)
    with pytest.raises(ClusterFileError, match=r"guest.g.thp: .* at all .*enabled is never.*echo madvise"):
        check(guests["g"], tmp_path)
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / "shmem_enabled").write_text("always within_size advise [never] deny force\n")
    check(guests["g"], tmp_path)
    with pytest.raises(ClusterFileError, match=r"guest.l.thp: .* switch .*shmem_enabled is never.*echo advise"):
        check(guests["l"], tmp_path)
    with pytest.raises(ClusterFileError, match="no transparent huge pages; leave `thp` out"):
        check(guests["g"], tmp_path / "none")


def test_files_on_disks_have_no_huge_pages(place: Place) -> None:
    text = CLUSTER.replace("BACKING", "shm").replace("OPTION", 'thp = true\npaged = "."')
    done = place.command("run", place.file(text))
    assert done.returncode == 2
    assert "guest.g.thp: its RAM is a file (`paged`), which has none; remove one of them" in done.stderr
