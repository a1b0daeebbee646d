"""Rows of guests that run: added, removed, read-only, private, shared, huge."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import LOW, PORT, Machine, build, out

from hostd.kvm import Exit, Hlt, Interrupted, Io, KvmError, MemoryFault, Mmio, System
from hostd.memory import (
    Anonymous,
    Device,
    Hugetlb,
    Image,
    RegionBacking,
    Segment,
    SharedFile,
    SlotError,
    SlotTable,
    map_image,
    smaps,
)
from hostd.memory.images import copy_image
from hostd.memory.layout import HUGE_PAGE, PAGE

MIB = 1 << 20
LIMIT = 20.0
AT = 4 * MIB
"""where tests put the row that they are about; ring 3 can reach the first GiB"""


def store(address: int, value: int) -> bytes:
    """movb $value, address."""
    return bytes.fromhex("c6 04 25") + address.to_bytes(4, "little") + bytes([value])


def load_and_tell(address: int) -> bytes:
    """mov address, %al (through %ebx); out %al, $PORT."""
    return bytes.fromhex("8a 04 25") + address.to_bytes(4, "little") + bytes([0xE6, PORT])


def told(value: int) -> Io:
    return Io(port=PORT, is_write=True, size=1, count=1, data=bytes([value]))


@pytest.fixture
def machines(system: System) -> Iterator[list[Machine]]:
    """Two guests."""
    made = [build(system), build(system)]
    yield made
    for machine in made:
        machine.close()


def test_64_gib_start_and_cost_nothing(machine: Machine) -> None:
    row = machine.table.add(1 << 32, 64 << 30, Anonymous(), name="big")
    machine.table.add(AT, MIB, Anonymous(), name="ram")
    machine.ring3(store(AT, 1) + out(7))
    assert machine.vcpu.run() == told(7)
    [big] = smaps.usage("self", [(row.hva, row.size)])
    assert big.resident == 0
    machine.table.write(row.end - 4, b"last")
    [big] = smaps.usage("self", [(row.hva, row.size)])
    assert big.resident == PAGE


def test_a_row_larger_than_the_host_allows(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100000 kB\nMemAvailable: 100000 kB\n")
    monkeypatch.setattr("hostd.memory.table.MEMINFO", str(meminfo))
    with pytest.raises(SlotError, match=r"slot vast at .* is more than this host allows: KVM may keep \d+ bytes"):
        machine.table.add(1 << 32, 64 << 30, Anonymous(), name="vast")


def test_rows_come_and_go_while_the_guest_runs(machine: Machine) -> None:
    """The guest stores in a loop. Without the row each store is an exit, with it none is."""
    machine.ring3(store(AT, 0x5A) + bytes.fromhex("eb f6"))
    exits: list[Exit] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            event = machine.vcpu.run()
            if not exits or exits[-1] != event:
                exits.append(event)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(20):
            row = machine.table.add(AT, PAGE, Anonymous(), name="loop")
            view = machine.table.view(AT, 1)
            _wait_until(lambda view=view: view[0] == 0x5A)
            machine.table.remove(row)
            view[0] = 0
            before = machine.vcpu.counters["exits"]
            _wait_until(lambda before=before: machine.vcpu.counters["exits"] > before + 1)
            assert view[0] == 0, "a removed row is no longer the guest's"
    finally:
        ended.set()
        machine.vcpu.stop()
        thread.join(LIMIT)
    assert Mmio(address=AT, is_write=True, size=1, data=b"\x5a") in exits
    assert set(map(type, exits)) <= {Mmio, Interrupted}


def _wait_until(done: object) -> None:
    assert callable(done)
    deadline = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.0005)


def test_read_only_row(machine: Machine, tmp_path: Path) -> None:
    """The guest reads it; its write is an exit and changes nothing, for the host's mapping is read-only too."""
    file = tmp_path / "text"
    file.write_bytes(b"A" * PAGE)
    row = machine.table.add(AT, PAGE, SharedFile(file), name="text", access="ro")
    machine.ring3(load_and_tell(AT + 5) + store(AT + 5, 0x42) + load_and_tell(AT + 5))
    assert machine.vcpu.run() == told(ord("A"))
    assert machine.vcpu.run() == Mmio(address=AT + 5, is_write=True, size=1, data=b"\x42")
    assert machine.vcpu.run() == told(ord("A"))
    assert file.read_bytes() == b"A" * PAGE
    maps = Path("/proc/self/maps").read_text()
    assert f"{row.hva:x}-{row.hva + row.size:x} r--s" in maps


def test_shared_file_is_shared_by_guests_and_host(machines: list[Machine], tmp_path: Path) -> None:
    file = tmp_path / "shared"
    file.write_bytes(bytes(PAGE))
    for machine in machines:
        machine.table.add(AT, PAGE, SharedFile(file), name="shared")
    machines[0].ring3(store(AT + 1, 0x11) + out(1))
    machines[1].ring3(load_and_tell(AT + 1) + out(1))
    assert machines[0].vcpu.run() == told(1)
    assert machines[1].vcpu.run() == told(0x11)
    assert file.read_bytes()[1] == 0x11


@pytest.mark.parametrize("backing", [RegionBacking, Device])
def test_region_and_device_rows_hold_what_a_guest_writes(machine: Machine, backing: type) -> None:
    fd = os.memfd_create("region") if backing is RegionBacking else os.open("/dev/zero", os.O_RDWR)
    if backing is RegionBacking:
        os.truncate(fd, PAGE)
    machine.table.add(AT, PAGE, backing(fd), name="row")
    os.close(fd)
    machine.ring3(store(AT, 0x33) + load_and_tell(AT))
    assert machine.vcpu.run() == told(0x33)
    assert machine.table.read(AT, 1) == b"\x33"


def test_hugetlb_row(machine: Machine, huge_pages: int) -> None:
    row = machine.table.add(AT, HUGE_PAGE, Hugetlb(), name="huge")
    machine.ring3(store(AT + MIB, 0x44) + load_and_tell(AT + MIB))
    assert machine.vcpu.run() == told(0x44)
    [usage] = smaps.usage("self", [(row.hva, row.size)])
    assert usage.huge == usage.resident == HUGE_PAGE
    assert huge_pages > 0


# --- images --------------------------------------------------------------------------------------------------------


def _program(tmp_path: Path) -> Path:
    """A file whose second page is code, third data: 100 bytes of it, then foreign bytes."""
    file = tmp_path / "program"
    code = load_and_tell(AT + PAGE) + store(AT + PAGE, 0x99) + load_and_tell(AT + PAGE) + load_and_tell(AT + PAGE + 100)
    data = b"\x07" * 100 + b"\xee" * (PAGE - 100)
    file.write_bytes(b"\xcc" * PAGE + code.ljust(PAGE, b"\xcc") + data + b"\xdd" * PAGE)
    return file


SEGMENTS = [Segment(AT, PAGE, PAGE, PAGE, 5), Segment(AT + PAGE, 2 * PAGE, 100, 3 * PAGE, 6)]


def _start(machine: Machine, file: Path) -> None:
    with file.open("rb") as opened:
        rows = map_image(machine.table, opened.fileno(), SEGMENTS)
    assert [(row.name, row.gpa, row.size, row.access, row.backing.kind) for row in rows] == [
        ("image.0", AT, PAGE, "ro", "image"),
        ("image.1", AT + PAGE, PAGE, "rw", "image"),
        ("image.1.bss", AT + 2 * PAGE, 2 * PAGE, "rw", "anonymous"),
    ]
    machine.ring3(b"\x90")
    regs = machine.vcpu.regs
    regs.rip = AT
    machine.vcpu.regs = regs


def test_a_guests_write_to_its_image_is_its_own(machines: list[Machine], tmp_path: Path) -> None:
    file = _program(tmp_path)
    before = file.read_bytes()
    for machine in machines:
        _start(machine, file)
    for machine in machines:
        # Each sees the file's 7, though the other may have written 0x99 to the same page before.
        assert machine.vcpu.run() == told(0x07)
        assert machine.vcpu.run() == told(0x99)
        assert machine.vcpu.run() == told(0), "the bytes behind the segment's end are zero, not the file's"
        assert machine.table.read(AT + PAGE, 1) == b"\x99"
    assert file.read_bytes() == before


def test_image_pages_are_the_page_caches_own(machine: Machine, tmp_path: Path) -> None:
    """Nothing is copied: a mapped file's clean page has no anonymous copy."""
    file = _program(tmp_path)
    _start(machine, file)
    row = machine.table.find(AT)
    assert row is not None
    assert machine.vcpu.run() == told(0x07)
    section = Path("/proc/self/smaps").read_text().partition(f"\n{row.hva:x}-")[2].partition("VmFlags")[0]
    assert "Rss:                   4 kB" in section
    assert "Anonymous:             0 kB" in section


def test_a_write_to_the_programs_text_is_an_exit(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(bytes(PAGE) + (store(AT + 64, 1) + out(1)).ljust(PAGE, b"\xcc"))
    _start(machine, _padded(file))
    assert machine.vcpu.run() == Mmio(address=AT + 64, is_write=True, size=1, data=b"\x01")


def _padded(file: Path) -> Path:
    file.write_bytes(file.read_bytes() + bytes(2 * PAGE))
    return file


@pytest.mark.parametrize(
    ("segment", "sentence"),
    [
        (Segment(AT + 1, PAGE, 10, 10, 5), "differs from it modulo 4096"),
        (Segment(AT, PAGE, 20, 10, 5), "20 bytes in the file, but 10 in memory"),
        (Segment(AT, PAGE, 1 << 30, 1 << 30, 5), "the file, which is truncated"),
        (Segment(0xA0000, 0, 10, 10, 5), "VGA hole"),
        (Segment(0, 0, 10, 10, 5), "overlap slot low"),
    ],
)
def test_a_bad_segment_leaves_no_row(machine: Machine, tmp_path: Path, segment: Segment, sentence: str) -> None:
    file = _program(tmp_path)
    with file.open("rb") as opened, pytest.raises(SlotError, match=sentence):
        map_image(machine.table, opened.fileno(), [SEGMENTS[1], segment])
    assert [row.name for row in machine.table] == ["low"]


def test_segment_inside_a_page_and_all_zeros(system: System, tmp_path: Path) -> None:
    """A segment that starts in mid-page keeps its offset; one without file bytes is anonymous alone."""
    file = _program(tmp_path)
    segments = [Segment(AT + 0x10, PAGE + 0x10, 0x20, 0x20, 6), Segment(AT + MIB, 0, 0, 5000, 6)]
    with system.create_vm() as vm, SlotTable(vm) as table, file.open("rb") as opened:
        rows = map_image(table, opened.fileno(), segments, name="prog")
        assert [(row.name, row.gpa, row.size) for row in rows] == [
            ("prog.0", AT, PAGE),
            ("prog.1.bss", AT + MIB, 2 * PAGE),
        ]
        assert table.read(AT + 0x10, 0x20) == file.read_bytes()[PAGE + 0x10 : PAGE + 0x30]


def test_a_copied_image_runs_and_knows_its_file_no_more(machine: Machine, tmp_path: Path) -> None:
    file = _program(tmp_path)
    with file.open("rb") as opened:
        rows = copy_image(machine.table, opened.fileno(), [*SEGMENTS, Segment(AT + MIB, 0, 0, 5000, 6)], mergeable=True)
    assert [(row.name, row.gpa, row.size, row.backing.kind) for row in rows] == [
        ("image.0", AT, PAGE, "anonymous"),
        ("image.1", AT + PAGE, 3 * PAGE, "anonymous"),
        ("image.2", AT + MIB, 2 * PAGE, "anonymous"),
    ]
    assert all(row.options.mergeable for row in rows)
    file.write_bytes(bytes(4 * PAGE))
    machine.ring3(b"\x90")
    regs = machine.vcpu.regs
    regs.rip = AT
    machine.vcpu.regs = regs
    assert [machine.vcpu.run() for _ in range(3)] == [told(0x07), told(0x99), told(0)]


def test_a_file_too_short_to_be_copied_leaves_no_row(machine: Machine, tmp_path: Path) -> None:
    with _program(tmp_path).open("rb") as opened, pytest.raises(SlotError, match="the file, which is truncated"):
        copy_image(machine.table, opened.fileno(), [SEGMENTS[1], Segment(AT + MIB, PAGE, MIB, MIB, 5)])
    assert [row.name for row in machine.table] == ["low"]


def test_page_out_changes_nothing_the_guest_sees(machine: Machine, tmp_path: Path) -> None:
    from hostd.memory._map import lib

    _start(machine, _program(tmp_path))
    assert machine.vcpu.run() == told(0x07)
    for row in machine.table:
        lib.map_advise(row.hva, row.size, lib.MADV_PAGEOUT)
    assert machine.vcpu.run() == told(0x99)
    for row in machine.table:
        lib.map_advise(row.hva, row.size, lib.MADV_PAGEOUT)
    assert machine.vcpu.run() == told(0)


def test_real_mode_halts(machine: Machine) -> None:
    machine.real_mode(b"\xf4")
    assert machine.vcpu.run() == Hlt()
    assert machine.table.find(LOW) is None


def test_reading_a_writable_image_copies_nothing(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"\x21" * PAGE)
    with file.open("rb") as opened:
        row = machine.table.add(AT, PAGE, Image(opened.fileno()), name="image")
    machine.ring3(load_and_tell(AT) + store(AT + 1, 1) + out(1))
    assert machine.vcpu.run() == told(0x21)
    assert _anonymous(row.hva) == "0"
    assert machine.vcpu.run() == told(1)
    assert _anonymous(row.hva) == "4"


def _anonymous(hva: int) -> str:
    """KiB of the mapping at `hva` that are copies of its file's pages."""
    section = Path("/proc/self/smaps").read_text().partition(f"\n{hva:x}-")[2]
    return section.partition("Anonymous:")[2].split()[0]


def test_a_file_cut_short_ends_the_guest_with_an_error(machine: Machine, tmp_path: Path) -> None:
    """Whoever can truncate the file can end the guest, but not the process that runs it."""
    file = tmp_path / "shared"
    file.write_bytes(bytes(PAGE))
    machine.table.add(AT, PAGE, SharedFile(file), name="shared")
    os.truncate(file, 0)
    machine.ring3(store(AT, 1) + out(1))
    event: object
    try:
        event = machine.vcpu.run()
    except KvmError as error:
        event = error
    # Which of the two depends on the kernel (KVM_CAP_MEMORY_FAULT_INFO).
    assert isinstance(event, (KvmError, MemoryFault))
    if isinstance(event, KvmError):
        assert "could not provide a page" in str(event)
