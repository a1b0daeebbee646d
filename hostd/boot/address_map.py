"""Where everything lies in a unikernel guest: RAM around the holes, the image, the stack, the regions above."""

from __future__ import annotations

from dataclasses import dataclass

from hostd.boot._abi import lib
from hostd.boot.elf import Image
from hostd.boot.errors import ImageError
from hostd.boot.paging import HUGE_PAGE, PAGE
from hostd.memory.layout import MMIO_HOLE, VGA_HOLE

GIB = 1 << 30
ABOVE_4G = MMIO_HOLE.stop
MIN_MEMORY = 2 << 20
MAX_STACK = 1 << 20


@dataclass(frozen=True)
class Span:
    """Guest addresses [start, end)."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class AddressMap:
    """The layout of one guest.

    `low` holds what the VMM and the guest tell each other, `ram` is everything above 1 MiB that is not the image,
    `heap` the part of it that the program may use as it likes, `regions` one span per region, in their order,
    `framebuffer` the picture's, if there is one.
    """

    low: Span
    image: Span
    ram: tuple[Span, ...]
    stack: Span
    heap: tuple[Span, ...]
    regions: tuple[Span, ...]
    framebuffer: Span | None


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def lay_out(memory: int, image: Image, region_sizes: list[int], framebuffer_size: int = 0) -> AddressMap:
    """Place `image`, a stack, regions and a picture of the given sizes in a guest of `memory` bytes of RAM.

    RAM is contiguous up to the MMIO hole, but for the VGA hole; what is left of `memory` continues at 4 GiB. Raises
    ImageError when the image doesn't fit.
    """
    if memory % PAGE or memory < MIN_MEMORY:
        raise ImageError(f"memory of {memory} bytes: a unikernel needs a multiple of {PAGE}, at least {MIN_MEMORY}")
    below = Span(VGA_HOLE.stop, min(memory, MMIO_HOLE.start))
    above = Span(ABOVE_4G, ABOVE_4G + max(0, memory - MMIO_HOLE.start))
    if image.end > below.end - 3 * PAGE:
        raise ImageError(
            f"{image.path}: its PT_LOADs end at {image.end:#x}, outside the guest's {memory} bytes of memory; "
            "give the guest more memory"
        )
    stack_size = min(MAX_STACK, (below.end - image.end) // 4 // PAGE * PAGE) or PAGE
    stack = Span(below.end - stack_size, below.end)
    ram = tuple(s for s in (Span(below.start, image.start), Span(image.end, below.end), above) if s.size)
    heap = tuple(s for s in (Span(image.end, stack.start - PAGE), above) if s.size > 0)
    sizes = [*region_sizes, framebuffer_size] if framebuffer_size else region_sizes
    shared = _regions(round_up(max(ABOVE_4G, above.end), GIB), sizes)
    return AddressMap(
        low=Span(0, VGA_HOLE.start),
        image=Span(image.start, image.end),
        ram=ram,
        stack=stack,
        heap=heap,
        regions=shared[: len(region_sizes)],
        framebuffer=shared[-1] if framebuffer_size else None,
    )


def _regions(at: int, sizes: list[int]) -> tuple[Span, ...]:
    spans = []
    for size in sizes:
        spans.append(Span(at, at + round_up(size, PAGE)))
        # A page that is never mapped lies behind each region; huge pages want the alignment.
        at = round_up(spans[-1].end + PAGE, HUGE_PAGE)
    return tuple(spans)


assert VGA_HOLE.stop == lib.GUEST_IMAGE
