"""Where a Linux guest's memory lies: nothing overlaps, nothing is lost, the kernel is told the truth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.boot import ImageError
from hostd.boot.linux import layout
from hostd.boot.linux.kernel import Kernel
from hostd.boot.linux.layout import RAM, lay_out, pci_gsi
from hostd.memory import Segment
from hostd.memory.layout import MMIO_HOLE, PAGE, VGA_HOLE

MIB, GIB = 1 << 20, 1 << 30
SEGMENTS = (
    Segment(0x1000000, 0x200000, 0x1822310, 0x1822310, 5),
    Segment(0x2A00000, 0x1C00000, 0x618000, 0x618000, 6),
    Segment(0x304C000, 0x244C000, 0xDB4000, 0xDB4000, 7),
)
KERNEL = Kernel("/k", "/k", SEGMENTS, 0x1000000, 0x1000850, "6.1")


def taken(places):
    """Return all that is memory: RAM, the kernel's pages, initrd and extra archive, as sorted (start, end)."""
    kernel = [(s.gpa // PAGE * PAGE, -(-(s.gpa + s.memory_size) // PAGE) * PAGE) for s in SEGMENTS]
    spans = [(s.start, s.end) for s in (*places.ram, places.initrd, places.extra) if s.size]
    return sorted(kernel + spans)


@given(
    memory=st.integers(128 * MIB // PAGE, 40 * GIB // PAGE).map(lambda pages: pages * PAGE),
    initrd=st.integers(0, 30 * MIB),
    extra=st.integers(0, MIB),
    bits=st.integers(36, 52),
)
def test_memory_is_all_there_once_and_told_as_it_is(memory, initrd, extra, bits):
    if memory > (1 << bits) // 2 - 4 * GIB:
        return
    places = lay_out(memory, KERNEL, initrd, extra, bits)
    spans = taken(places)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    assert all(end <= hole.start or start >= hole.stop for start, end in spans for hole in (VGA_HOLE, MMIO_HOLE))
    # All but what the VGA hole shadows.
    assert sum(end - start for start, end in spans) == memory - len(VGA_HOLE)
    told = [(e.start, e.start + e.size) for e in places.entries if e.kind == RAM]
    assert sum(end - start for start, end in told) == memory - len(VGA_HOLE) - layout.ACPI_TABLES.size
    assert all(any(a <= start and end <= b for a, b in spans_joined(spans)) for start, end in told)
    assert places.initrd.start % PAGE == 0
    assert places.initrd.end == places.extra.start
    assert places.modules_size == (places.initrd.size + extra if extra else initrd)
    assert places.pci64.start >= max(end for _, end in spans)
    assert places.pci64.start < places.pci64.end <= 1 << bits


def spans_joined(spans):
    joined = [spans[0]]
    for start, end in spans[1:]:
        if start == joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


@pytest.mark.parametrize(
    ("memory", "initrd", "text"),
    [
        (64 * MIB, 0, "at least 86 MiB"),
        (100 * MIB, 20 * MIB, "at least 106 MiB"),
        (128 * MIB + 1, 0, "no multiple"),
        (4 * GIB, 3 * GIB, "make the initrd smaller"),
    ],
)
def test_what_does_not_fit_says_what_would(memory, initrd, text):
    with pytest.raises(ImageError, match=text):
        lay_out(memory, KERNEL, initrd, 0, 40)


def test_the_least_memory_that_is_named_is_enough():
    with pytest.raises(ImageError, match="at least 86 MiB"):
        lay_out(85 * MIB, KERNEL, 0, 0, 40)
    assert lay_out(86 * MIB, KERNEL, 0, 0, 40).memory == 86 * MIB


def test_a_cpu_with_few_address_bits_limits_memory():
    with pytest.raises(ImageError, match="36 physical address bits; give the guest at most 31744 MiB"):
        lay_out(40 * GIB, KERNEL, 0, 0, 36)
    assert lay_out(31 * GIB, KERNEL, 0, 0, 36).pci64.start == 1 << 35


def test_structures_of_the_start_do_not_touch():
    ends = [
        (layout.GDT, PAGE),
        (layout.START_INFO, PAGE),
        (layout.ZERO_PAGE, PAGE),
        (layout.PAGE_TABLES, 6 * PAGE),
        (layout.COMMAND_LINE, layout.COMMAND_LINE_SIZE),
    ]
    for (at, size), (after, _) in zip(ends, ends[1:], strict=False):
        assert at + size <= after
    assert layout.COMMAND_LINE + layout.COMMAND_LINE_SIZE <= 0x10000


def test_pci_interrupts_are_the_last_pins_of_the_ioapic():
    assert {pci_gsi(slot) for slot in range(32)} == set(range(16, 24))
