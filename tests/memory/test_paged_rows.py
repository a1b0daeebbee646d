"""Rows whose pages are sent away, and what is said where that can't be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from swapfile import swapping

from hostd.boot.ram import PagedRam, Ram
from hostd.memory import Anonymous, BackingError, RamFile, SharedFile, SlotTable, commit, kernel_side, smaps, swap
from hostd.memory.backings.paged import PagedFile
from hostd.memory.layout import PAGE
from hostd.memory.pageout import WINDOW, page_out, resident
from hostd.memory.table import Row

AT = 1 << 32
SIZE = 2 * WINDOW


def send(row: Row, most: int = SIZE) -> int:
    """Page a row out as the guest's process does, window by window."""
    left = offset = 0
    while offset < row.size and left < most:
        gone, offset = page_out(row, offset, most - left)
        left += gone
    return left


def fill(table: SlotTable, row: Row) -> bytes:
    data = os.urandom(PAGE) * (row.size // PAGE)
    table.write(row.gpa, data)
    return data


@pytest.mark.parametrize("kind", ["file", "paged"])
def test_pages_go_to_the_file_and_come_back(table: SlotTable, tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "file").touch()
        os.truncate(tmp_path / "file", SIZE)
        row = table.add(AT, SIZE, SharedFile(tmp_path / "file"), name="disk")
    else:
        row = table.add(AT, SIZE, PagedFile(str(tmp_path), SIZE).at(0), name="disk")
    data = fill(table, row)
    assert resident(row) == SIZE == smaps.usage("self", [(row.hva, row.size)])[0].resident
    left = send(row, SIZE // 4)
    assert left == SIZE // 4
    assert resident(row) == SIZE - left
    assert send(row) >= SIZE // 4 * 3 * 9 // 10
    assert resident(row) <= SIZE // 10
    assert table.read(AT, SIZE) == data
    if kind == "file":
        assert (tmp_path / "file").read_bytes() == data
    else:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["anonymous", "shared"])
def test_what_is_in_swap_is_shown_where_it_belongs(table: SlotTable, tmp_path: Path, kind: str) -> None:
    with swapping(tmp_path):
        file = RamFile(2 * WINDOW)
        backings = [Anonymous() if kind == "anonymous" else file.at(offset) for offset in (0, WINDOW)]
        rows = [table.add(AT * n, WINDOW // 4, backing, name=f"row-{n}") for n, backing in enumerate(backings, 1)]
        data = [fill(table, row) for row in rows]
        left = send(rows[0])
        assert left >= rows[0].size * 9 // 10
        gone, stayed = smaps.usage("self", [(row.hva, row.size) for row in rows])
        assert (gone.resident, gone.swapped) == (rows[0].size - left, left)
        assert (stayed.resident, stayed.swapped) == (rows[1].size, 0)
        assert [table.read(row.gpa, row.size) for row in rows] == data
        back = smaps.usage("self", [(rows[0].hva, rows[0].size)])[0]
        assert (back.resident, back.swapped) == (rows[0].size, 0)
        file.close()


def test_zeros_that_were_only_read_take_no_memory(table: SlotTable) -> None:
    row = table.add(AT, SIZE, Anonymous(), name="zeros")
    assert not any(table.view(AT, WINDOW))
    table.write(AT, b"x")
    assert resident(row) == PAGE


def test_locked_pages_stay(table: SlotTable, tmp_path: Path) -> None:
    row = table.add(AT, 16 * PAGE, PagedFile(str(tmp_path), 16 * PAGE).at(0), name="kept", lock=True)
    data = fill(table, row)
    with pytest.raises(BackingError, match="slot kept at 0x100000000: its pages cannot be sent away: invalid argument"):
        send(row)
    assert resident(row) == row.size
    assert table.read(AT, row.size) == data


def test_a_paged_file_keeps_its_space_if_asked(tmp_path: Path) -> None:
    sparse, whole = PagedFile(str(tmp_path), SIZE), PagedFile(str(tmp_path), SIZE, reserve=True)
    assert os.fstat(sparse.descriptor).st_blocks == 0
    assert os.fstat(whole.descriptor).st_blocks * 512 >= SIZE
    assert os.fstat(whole.descriptor).st_nlink == 0


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("/dev/shm", "/dev/shm: is on tmpfs, which is memory itself; name a folder on a disk"),
        ("/nowhere", "/nowhere: no such file or directory; name a folder"),
        ("/etc/passwd", "/etc/passwd: not a directory; name a folder"),
    ],
)
def test_a_folder_that_can_not_be(folder: str, sentence: str) -> None:
    with pytest.raises(BackingError) as raised:
        PagedFile(folder, SIZE)
    assert str(raised.value) == sentence


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(BackingError, match=r"no file of \d+ bytes can be made there: (no space|file too large)"):
        PagedFile(str(tmp_path), 1 << 50, reserve=True)


def test_ram_that_the_host_owes_is_accounted(table: SlotTable) -> None:
    """The kernel marks a mapping that counts as committed with "ac", one that doesn't with "nr" (proc(5), smaps)."""
    for reserve, flags in ((False, "nr"), (True, "ac")):
        row = table.add(AT + reserve * SIZE, PAGE, Ram(reserve=reserve).at(AT), name="ram")
        assert flags in _flags(row.hva)


def _flags(address: int) -> list[str]:
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith(f"{address:x}-"):
            inside = True
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"nothing is mapped at {address:#x}")


def test_paged_ram_has_offsets_that_are_addresses(table: SlotTable, tmp_path: Path) -> None:
    ram = PagedRam(str(tmp_path), AT + SIZE)
    row = table.add(AT, PAGE, ram.at(AT), name="ram")
    assert row.describe() | {"hva": 0} == row.describe() | {
        "hva": 0,
        "backing": "paged",
        "source": str(tmp_path),
        "offset": AT,
    }


def test_what_is_said_of_swap_and_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    lines = "MemTotal: 100 kB\nMemAvailable: 50 kB\nSwapTotal: {} kB\nSwapFree: {} kB\n"
    lines += "CommitLimit: 70 kB\nCommitted_AS: 60 kB\n"
    for total, free, said in ((0, 0, "no swap; add some"), (8, 0, "swap of 8192 bytes is full"), (8, 4, None)):
        meminfo.write_text(lines.format(total, free))
        host = swap.host_memory(str(meminfo))
        assert (host.total, host.available, host.swap_total, host.swap_free) == (102400, 51200, total << 10, free << 10)
        why = swap.no_room(host)
        assert why is None if said is None else said in str(why)
    policy = tmp_path / "policy"
    monkeypatch.setattr(commit, "POLICY", policy)
    monkeypatch.setattr(commit, "MEMINFO", str(meminfo))
    policy.write_text("2\n")
    assert "vm.overcommit_memory is 2): 61440 of 71680 bytes are promised" in commit.refusal()
    policy.write_text("0\n")
    assert "not so much memory and swap" in commit.refusal()


def test_what_kvm_keeps_of_a_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_side, "MODULES", tmp_path)
    assert kernel_side.table_bytes(64 << 30) == 160 << 20
    for path in ("kvm/parameters/tdp_mmu", "kvm_amd/parameters/npt"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("Y\n" if "tdp" in path else "1\n")
    assert kernel_side.table_bytes(64 << 30) == 32 << 20
