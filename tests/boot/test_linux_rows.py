"""A Linux guest's memory as its rows have it: the kernel's bytes, zeros, the initrd and the extra archive."""

import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linux_images import DATA, PAGE, TEXT, Vmlinux, text

from hostd.boot import ImageError
from hostd.boot.linux import layout, pvh, zeropage
from hostd.boot.linux.firmware import RESET_VECTOR, reset_code
from hostd.boot.linux.kernel import open_kernel
from hostd.boot.linux.layout import lay_out
from hostd.boot.linux.rows import map_guest
from hostd.boot.linux.tables import identity_tables, write_tables
from hostd.boot.unikernel import RamOptions
from hostd.memory import SlotTable

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "vmlinux").write_bytes(Vmlinux().build())
    return open_kernel(folder / "vmlinux", folder / "cache")


class Filled:
    """A table without a guest, filled as a guest's is."""

    def __init__(self, kernel, folder, initrd=b"", extra=b"", memory=64 * MIB, options=None, cmdline="quiet"):
        self.table = SlotTable(None)
        self.places = lay_out(memory, kernel, len(initrd), len(extra), 40)
        (folder / "initrd").write_bytes(initrd)
        files = [os.open(path, os.O_RDONLY) for path in (kernel.path, folder / "initrd")]
        try:
            map_guest(
                self.table,
                kernel,
                files[0],
                files[1] if initrd else None,
                len(initrd),
                extra,
                self.places,
                options or RamOptions(),
            )
        finally:
            for fd in files:
                os.close(fd)
        write_tables(self.table, kernel, self.places, cmdline, 2)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.table.close()


def test_the_kernel_is_mapped_and_zero_behind_its_bytes(kernel, tmp_path):
    with Filled(kernel, tmp_path) as guest:
        table = guest.table
        assert table.read(TEXT, len(text())) == text()
        assert table.read(TEXT + len(text()), -len(text()) % PAGE) == bytes(-len(text()) % PAGE)
        assert table.read(DATA, PAGE + 200) == b"d" * (PAGE + 200)
        assert table.read(DATA + PAGE + 200, 3 * PAGE - 200) == bytes(3 * PAGE - 200)
        rows = {row.name: row for row in table}
        assert rows["kernel.text"].backing.kind == rows["kernel.data"].backing.kind == "image"
        assert rows["kernel.data.zero"].backing.kind == "anonymous"
        # The kernel patches its text; the file doesn't change.
        table.write(TEXT, b"patched")
    with open(kernel.path, "rb") as file:
        file.seek(PAGE)
        assert file.read(7) == text()[:7]


def test_rows_are_all_memory_in_order(kernel, tmp_path):
    with Filled(kernel, tmp_path, b"initrd" * 1000, b"070701extra", 6 * GIB) as guest:
        rows = list(guest.table)
        names = [row.name for row in rows]
        assert names == [
            "low",
            "rom",
            "ram.0",
            "kernel.text",
            "ram.1",
            "kernel.data",
            "kernel.data.zero",
            "ram.2",
            "initrd",
            "extra",
            "ram.3",
        ]
        assert all(a.end <= b.gpa for a, b in zip(rows, rows[1:], strict=False))
        assert all(row.writable for row in rows if row.name != "rom")
        assert sum(row.size for row in rows if row.name != "rom") == 6 * GIB - 0x60000


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(initrd=st.integers(1, 3 * PAGE), extra=st.integers(0, 2 * PAGE))
def test_the_archives_lie_behind_each_other_with_zeros_between(kernel, tmp_path, initrd, extra):
    files, more = b"\x1f" * initrd, b"0" * extra
    with Filled(kernel, tmp_path, files, more) as guest:
        places = guest.places
        found = guest.table.read(places.initrd.start, places.modules_size)
        if extra:
            assert found == files.ljust(-(-initrd // PAGE) * PAGE, b"\0") + more
        else:
            assert found == files
        assert places.extra.end == 64 * MIB


def test_the_rom_is_zeros_but_for_the_reset_vector(kernel, tmp_path):
    with Filled(kernel, tmp_path) as guest:
        rom = guest.table.read(0xC0000, 0x40000)
        assert rom[RESET_VECTOR - 0xC0000 :].rstrip(b"\0") == reset_code()
        assert not any(rom[: RESET_VECTOR - 0xC0000])
        # mov $0x602, %dx; mov $1, %al; out %al, (%dx); hlt; jmp to the hlt
        assert reset_code().hex() == "ba0206" + "b001" + "ee" + "f4" + "ebfd"


def test_huge_pages_take_what_is_aligned(kernel, tmp_path):
    added = []

    class Table:
        """Keeps what would be added: this host need not have huge pages."""

        def add(self, gpa, size, backing, *, name, **_):
            added.append((name, gpa, size, backing.kind))

        def add_mapped(self, *_, **__):
            pass

        def view(self, gpa, size, writable):
            return bytes(size)

    with open(kernel.path, "rb") as file:
        places = lay_out(62 * MIB + PAGE, kernel, 0, 0, 40)
        map_guest(Table(), kernel, file.fileno(), None, 0, b"", places, RamOptions(hugetlb=True))
    ram = [row for row in added if row[0].startswith("ram.")]
    assert [(gpa, size, kind) for _, gpa, size, kind in ram] == [
        (MIB, MIB, "anonymous"),
        (2 * MIB, 14 * MIB, "hugetlb"),
        (TEXT + 10 * PAGE, 2 * MIB - 10 * PAGE, "anonymous"),
        (TEXT + 2 * MIB, 2 * MIB, "hugetlb"),
        (DATA + 4 * PAGE, 2 * MIB - 4 * PAGE, "anonymous"),
        (DATA + 2 * MIB, 40 * MIB, "hugetlb"),
        (62 * MIB, PAGE, "anonymous"),
    ]


def test_start_info_leads_to_everything(kernel, tmp_path):
    with Filled(kernel, tmp_path, b"i" * 5000, b"070701", 6 * GIB, cmdline="root=none") as guest:
        head = pvh.HEAD.unpack(guest.table.read(layout.START_INFO, pvh.HEAD.size))
        magic, version, flags, modules, modules_at, command_line, rsdp, entries_at, count, _ = head
        assert (magic, version, flags, modules) == (0x336EC578, 1, 0, 1)
        module = pvh.MODULE.unpack(guest.table.read(modules_at, 32))
        assert module == (guest.places.initrd.start, 2 * PAGE + 6, 0, 0)
        assert guest.table.read(command_line, 10) == b"root=none\0"
        assert guest.table.read(rsdp, 8) == b"RSD PTR "
        entries = list(pvh.ENTRY.iter_unpack(guest.table.read(entries_at, 24 * count)))
        assert [entry[2] for entry in entries] == [1, 3, 1, 2, 1]
        assert entries[-1][:2] == (4 * GIB, 3 * GIB)
        assert entries_at + 24 * count <= layout.ZERO_PAGE


def test_the_zero_page_keeps_the_setup_header(kernel):
    places = lay_out(64 * MIB, kernel, 5000, 0, 40)
    setup = bytearray(0x7B)
    setup[0x211 - 0x1F1] = 0x83
    setup[0x238 - 0x1F1] = 0xFF
    for header in (b"", bytes(setup)):
        page = zeropage.boot_params(places, header)
        assert len(page) == PAGE
        assert page[0x210:0x212] == b"\xff\x01"  # Unknown loader; loaded high, no KASLR flag, no heap.
        assert struct.unpack_from("<II", page, 0x218) == (places.initrd.start, 5000)
        assert struct.unpack_from("<I", page, 0x228) == (layout.COMMAND_LINE,)
        assert struct.unpack_from("<Q", page, 0x70) == (layout.ACPI_TABLES.start,)
        assert page[0x1E8] == len(places.entries)
        table = list(struct.iter_unpack("<QQI", page[0x2D0 : 0x2D0 + 20 * page[0x1E8]]))
        assert table == [(e.start, e.size, e.kind) for e in places.entries]
        assert page[0x1EF] == 0  # The sentinel: a loader that cleared the page.
    assert page[0x238] == 0xFF
    assert zeropage.boot_params(places, b"")[0x202:0x206] == b"HdrS"


@given(st.integers(0, (1 << 32) - 1))
def test_the_first_4_gib_map_to_themselves(address):
    tables = identity_tables()
    table = layout.PAGE_TABLES
    for shift in (39, 30, 21):
        (entry,) = struct.unpack_from("<Q", tables, table - layout.PAGE_TABLES + (address >> shift & 511) * 8)
        assert entry & 3 == 3
        table = entry & ~0xFFF
    assert entry & 0x80
    assert (entry & ~0x1FFFFF) + address % (1 << 21) == address


@pytest.mark.parametrize(
    ("cmdline", "match"), [("x" * 2048, "2048 characters"), ("tabs\tand", "ASCII"), ("é", "ASCII"), ("a\0b", "ASCII")]
)
def test_a_command_line_that_linux_would_not_take_is_refused(kernel, tmp_path, cmdline, match):
    with pytest.raises(ImageError, match=match):
        Filled(kernel, tmp_path, cmdline=cmdline)
