"""The address map never uses a hole and never puts two things in one place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.boot import ImageError
from hostd.boot.address_map import MIN_MEMORY, lay_out
from hostd.boot.elf import Image, ImageSegment
from hostd.memory.layout import MMIO_HOLE, VGA_HOLE

MIB = 1 << 20


def image(start: int = MIB, size: int = 0x3000) -> Image:
    return Image("prog.elf", (ImageSegment(start, 0x1000, size, size, 5),), start)


@given(
    st.integers(MIN_MEMORY // 4096, (64 << 30) // 4096),
    st.integers(0, 100),
    st.lists(st.integers(1, 1 << 31), max_size=8),
)
def test_nothing_overlaps_and_holes_stay_holes(pages, image_page, regions):
    places = lay_out(pages * 4096, image(MIB + image_page * 4096), regions)
    spans = sorted(
        [(s.start, s.end) for s in (places.low, places.image, *places.ram, *places.regions)]
        + [(VGA_HOLE.start, VGA_HOLE.stop), (MMIO_HOLE.start, MMIO_HOLE.stop)]
    )
    assert all(low_end <= high_start for (_, low_end), (high_start, _) in zip(spans, spans[1:], strict=False))
    assert all(span.start % 4096 == 0 and span.size % 4096 == 0 for span in (*places.ram, *places.regions))
    assert [r.size - size for r, size in zip(places.regions, regions, strict=True)] == [
        -size % 4096 for size in regions
    ]


def test_ram_adds_up_to_what_was_asked_for():
    places = lay_out(6 << 30, image(), [])
    assert sum(span.size for span in (*places.ram, places.image, places.low)) == (6 << 30) - (0x100000 - 0xA0000)


def test_stack_has_a_guard_below_it():
    places = lay_out(16 * MIB, image(), [])
    assert all(not heap.start <= places.stack.start - 1 < heap.end for heap in places.heap)


@pytest.mark.parametrize("memory", [0, 4096, MIN_MEMORY + 1])
def test_memory_must_be_whole_pages_and_enough(memory):
    with pytest.raises(ImageError, match="multiple of 4096"):
        lay_out(memory, image(), [])


def test_image_larger_than_memory_is_refused():
    with pytest.raises(ImageError, match="outside the guest's"):
        lay_out(4 * MIB, image(size=8 * MIB), [])
