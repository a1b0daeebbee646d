"""Each backing and each row option."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from hostd.memory import (
    Anonymous,
    BackingError,
    Device,
    Hugetlb,
    Image,
    RegionBacking,
    SharedFile,
    SlotError,
    SlotTable,
    smaps,
)
from hostd.memory.layout import HUGE_PAGE, PAGE

MIB = 1 << 20
MFD_HUGETLB = 4
InChild = Callable[[Callable[[], str]], str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)  # four pages
    return path


def resident(table: SlotTable, name: str) -> smaps.RowUsage:
    rows = list(table)
    found = smaps.usage("self", [(row.hva, row.size) for row in rows])
    return next(usage for row, usage in zip(rows, found, strict=True) if row.name == name)


def test_anonymous_is_zero_and_lazy(table: SlotTable) -> None:
    table.add(MIB, 512 * MIB, Anonymous(), name="ram")
    assert resident(table, "ram").resident == 0
    table.write(MIB + 5 * PAGE, b"touch")
    assert resident(table, "ram").resident == PAGE
    assert table.read(MIB, 16) == bytes(16)


def test_shared_file_by_path_and_descriptor(table: SlotTable, file: Path) -> None:
    table.add(MIB, 4 * PAGE, SharedFile(file), name="path")
    with file.open("r+b") as opened:
        table.add(2 * MIB, 2 * PAGE, SharedFile(opened.fileno(), 2 * PAGE), name="descriptor")
    table.write(2 * MIB, b"changed")
    assert file.read_bytes()[2 * PAGE :][:7] == b"changed"
    assert table.read(MIB + 2 * PAGE, 7) == b"changed"


def test_image_is_private(table: SlotTable, file: Path) -> None:
    before = file.read_bytes()
    with file.open("rb") as opened:
        table.add(MIB, 4 * PAGE, Image(opened.fileno()), name="image")
    table.write(MIB, b"changed")
    assert table.read(MIB, 7) == b"changed"
    assert file.read_bytes() == before


def test_a_file_may_end_in_the_last_page(table: SlotTable, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"x" * 5000)
    table.add(MIB, 2 * PAGE, SharedFile(path), name="text", access="ro")
    assert table.read(MIB + 4990, 20) == b"x" * 10 + bytes(10)
    with pytest.raises(SlotError, match=r"text has 5000 bytes, too few for 12288 at offset 0x0"):
        table.add(2 * MIB, 3 * PAGE, SharedFile(path), name="more")


def test_file_errors_are_sentences(table: SlotTable, file: Path, tmp_path: Path) -> None:
    def add(backing: SharedFile, access: str = "rw") -> None:
        table.add(MIB, PAGE, backing, name="x", access="ro" if access == "ro" else "rw")

    with pytest.raises(BackingError, match=r"slot x at 0x100000: .*/none cannot be opened for reading.*no such file"):
        add(SharedFile(tmp_path / "none"))
    with pytest.raises(SlotError, match=r"offset 0x7 in .* is no multiple of 4096"):
        add(SharedFile(file, 7))
    with pytest.raises(BackingError, match=r"is a directory|cannot be mapped"):
        add(SharedFile(tmp_path), "ro")
    with (
        file.open("rb") as opened,
        pytest.raises(BackingError, match=r"open for reading only; map it read-only"),
    ):
        add(SharedFile(opened.fileno()))
    reader, writer = os.pipe()
    with pytest.raises(BackingError, match="cannot be mapped"):
        add(SharedFile(reader), "ro")
    os.close(reader)
    os.close(writer)
    with pytest.raises(BackingError, match="bad file descriptor"):
        add(SharedFile(99999))
    assert len(table) == 0


def test_region_memory_is_shared(table: SlotTable) -> None:
    fd = os.memfd_create("region")
    os.truncate(fd, MIB)
    row = table.add(MIB, MIB, RegionBacking(fd, name="link"), name="region link")
    with mmap.mmap(fd, MIB) as other:
        other[100:105] = b"hello"
        assert table.read(MIB + 100, 5) == b"hello"
    assert row.describe()["source"] == "link"
    os.close(fd)
    table.write(MIB, b"the descriptor may be closed")


def test_device(table: SlotTable) -> None:
    """/dev/zero maps as memory that is shared; what a real device shows is the device's."""
    table.add(MIB, 4 * PAGE, Device("/dev/zero", 0), name="device")
    table.write(MIB, b"mapped")
    assert table.read(MIB, 8) == b"mapped\0\0"
    with pytest.raises(BackingError, match=r"/dev/null cannot be mapped"):
        table.add(2 * MIB, PAGE, Device("/dev/null"), name="null")
    with pytest.raises(BackingError, match=r"/dev/no-such cannot be opened"):
        table.add(2 * MIB, PAGE, Device("/dev/no-such"), name="none")


# --- huge pages ---------------------------------------------------------------------------------------------


def test_hugetlb(table: SlotTable, huge_pages: int) -> None:
    table.add(HUGE_PAGE, 2 * HUGE_PAGE, Hugetlb(), name="huge")
    assert resident(table, "huge").resident == 0
    table.write(2 * HUGE_PAGE + 5, b"x")
    assert resident(table, "huge").huge == HUGE_PAGE
    assert table.hva(HUGE_PAGE) % HUGE_PAGE == 0
    assert huge_pages >= 2


def test_hugetlb_region(table: SlotTable, huge_pages: int) -> None:
    fd = os.memfd_create("huge", MFD_HUGETLB)
    os.truncate(fd, huge_pages // 2 * HUGE_PAGE)
    table.add(HUGE_PAGE, HUGE_PAGE, RegionBacking(fd), name="region")
    table.write(HUGE_PAGE, b"x")
    assert os.pread(fd, 1, 0) == b"x"
    with pytest.raises(SlotError, match="multiples of 2097152 bytes"):
        table.add(4 * HUGE_PAGE, PAGE, RegionBacking(fd), name="part")
    os.close(fd)


def test_hugetlb_shortage_is_a_sentence(table: SlotTable) -> None:
    with pytest.raises(
        BackingError,
        match=r"slot huge at 0x100000000: 524288 huge pages of 2048 KiB are needed and the host has \d+ free; "
        r"reserve more with `sysctl vm.nr_hugepages=N`",
    ):
        table.add(1 << 32, 1 << 40, Hugetlb(), name="huge")


# --- options ------------------------------------------------------------------------------------------------


def _flags(address: int) -> list[str]:
    """VmFlags of the mapping at `address`."""
    text = Path("/proc/self/smaps").read_text()
    return text.partition(f"\n{address:x}-")[2].partition("VmFlags:")[2].partition("\n")[0].split()


def test_prefault(table: SlotTable, file: Path) -> None:
    table.add(MIB, MIB, Anonymous(), name="ram", prefault=True)
    assert resident(table, "ram").resident == MIB
    table.add(4 * MIB, 4 * PAGE, SharedFile(file), name="text", access="ro", prefault=True)
    assert resident(table, "text").resident == 4 * PAGE


def test_prefault_of_an_image_copies_nothing(table: SlotTable, file: Path) -> None:
    with file.open("rb") as opened:
        row = table.add(MIB, 4 * PAGE, Image(opened.fileno()), name="image", prefault=True)
    text = Path("/proc/self/smaps").read_text().partition(f"\n{row.hva:x}-")[2].partition("VmFlags")[0]
    assert "Anonymous:             0 kB" in text
    assert resident(table, "image").resident == 4 * PAGE


@pytest.mark.parametrize(("thp", "flag"), [(True, "hg"), (False, "nh")])
def test_transparent_huge_pages(table: SlotTable, thp: bool, flag: str) -> None:
    row = table.add(2 * MIB, 4 * MIB, Anonymous(), name="ram", thp=thp)
    assert flag in _flags(row.hva)
    assert row.hva % HUGE_PAGE == 0


def test_the_hosts_address_follows_the_guests(table: SlotTable) -> None:
    """Else KVM could not map a huge page in the guest."""
    row = table.add(3 * MIB, 8 * MIB, Anonymous(), name="ram", thp=True)
    assert row.hva % HUGE_PAGE == row.gpa % HUGE_PAGE


def test_mergeable(table: SlotTable) -> None:
    try:
        row = table.add(MIB, MIB, Anonymous(), name="ram", mergeable=True)
    except BackingError as error:
        assert "KSM is not in this kernel" in str(error)  # noqa: PT017 - either way is right
        assert not Path("/sys/kernel/mm/ksm").exists()
    else:
        assert "mg" in _flags(row.hva)


def test_lock_takes_pages_as_they_are_touched(table: SlotTable) -> None:
    row = table.add(MIB, 4 * MIB, Anonymous(), name="ram", lock=True)
    assert "lo" in _flags(row.hva)
    assert resident(table, "ram").resident == 0


@pytest.fixture
def in_child() -> InChild:
    """Return a function that runs another in a forked child and returns its text."""

    def run(work: Callable[[], str]) -> str:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                text = work()
            except BaseException as error:  # The child must not return into pytest.
                text = f"{type(error).__name__}: {error}"
            os.write(writer, text.encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            text = pipe.read().decode()
        os.waitpid(child, 0)
        return text

    return run


def test_a_limit_too_low_for_lock_is_a_sentence(in_child: InChild) -> None:
    def work() -> str:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        if os.getuid() == 0:
            os.setresuid(65534, 65534, 65534)  # root may lock without limit
        with SlotTable(None) as table:
            table.add(MIB, MIB, Anonymous(), name="ram", lock=True)
        return "locked"

    said = in_child(work)
    assert said.startswith(
        "BackingError: slot ram at 0x100000: 1048576 bytes cannot be locked: RLIMIT_MEMLOCK is 65536 bytes"
    )
    assert "ulimit -l" in said


def test_a_host_out_of_addresses_is_a_sentence(in_child: InChild) -> None:
    def work() -> str:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        with SlotTable(None) as table:
            table.add(1 << 32, 64 << 30, Anonymous(), name="big")
        return "mapped"

    assert "the host refuses 68719476736 bytes of addresses: cannot allocate memory" in in_child(work)


def test_rows_are_named_for_other_tools(table: SlotTable) -> None:
    row = table.add(MIB, MIB, Anonymous(), name="guest-ram")
    supported = ctypes.CDLL(None).prctl(0x53564D41, 0, ctypes.c_ulong(row.hva), ctypes.c_ulong(PAGE), b"x") == 0
    line = next(x for x in Path("/proc/self/maps").read_text().splitlines() if x.startswith(f"{row.hva:x}-"))
    assert ("[anon:" in line) == supported
