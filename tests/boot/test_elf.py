"""Images that are none, and one that is."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestlib import compile_program
from hostd.boot import ImageError
from hostd.boot._abi import lib
from hostd.boot.elf import read_image

PROGRAM = '#include "guest.h"\nint counter = 7;\nint main(void) { return counter; }\n'
NOTE = b"hostd\0\0\0" + lib.GUEST_ABI_VERSION.to_bytes(4, "little")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("elf")
    (folder / "prog.c").write_text(PROGRAM)
    return compile_program([folder / "prog.c"], folder / "prog.elf").read_bytes()


def changed(data: bytes, offset: int, layout: str, value: int) -> bytes:
    out = bytearray(data)
    struct.pack_into(layout, out, offset, value)
    return bytes(out)


def header_offset(data: bytes, index: int) -> int:
    """Return where program header `index` lies."""
    return int(struct.unpack_from("<Q", data, 32)[0]) + 56 * index


def read(tmp_path: Path, data: bytes):
    path = tmp_path / "image.elf"
    path.write_bytes(data)
    return read_image(path)


def test_a_good_image_has_text_constants_and_data(tmp_path, good):
    image = read(tmp_path, good)
    assert [s.flags for s in image.segments] == [5, 4, 6]
    assert image.start == 0x100000
    assert image.segments[0].gpa <= image.entry < image.segments[0].gpa + image.segments[0].file_size


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("text file", lambda d: b"hello, world\n" * 100, "is no ELF file"),
        ("empty", lambda d: b"", "is no ELF file"),
        ("header only", lambda d: d[:64], "truncated"),
        ("half a header", lambda d: d[:40], "damaged or truncated"),
        ("half the file", lambda d: d[:4200], "truncated"),
        ("32-bit", lambda d: changed(d, 4, "B", 1), "32-bit|damaged"),
        ("another machine", lambda d: changed(d, 18, "<H", 183), "x86-64"),
        ("shared object", lambda d: changed(d, 16, "<H", 3), "ET_EXEC"),
        ("entry outside", lambda d: changed(d, 24, "<Q", 0x900000), "entry point 0x900000"),
        ("overlapping", lambda d: changed(d, header_offset(d, 1) + 16, "<Q", 0x100000), "overlap"),
        (
            "below the image area",
            lambda d: changed(d, header_offset(d, 0) + 16, "<Q", 0x1000),
            "below 0x100000",
        ),
        ("unmappable offset", lambda d: changed(d, header_offset(d, 0) + 16, "<Q", 0x100010), "modulo"),
        (
            "file size",
            lambda d: changed(d, header_offset(d, 2) + 32, "<Q", 1 << 40),
            "more bytes in the file",
        ),
        ("headers outside", lambda d: changed(d, 32, "<Q", 1 << 50), "truncated|damaged"),
        (
            "contract",
            lambda d: d.replace(NOTE, b"hostd\0\0\0\1\0\0\0"),
            "version 1 of the guest contract",
        ),
        ("no note", lambda d: d.replace(NOTE, b"other\0" + NOTE[6:]), "no hostd note"),
    ],
)
def test_a_bad_image_is_one_sentence(tmp_path, good, name, change, text):
    data = change(good)
    assert data != good
    with pytest.raises(ImageError, match=text) as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value), name
    assert "image.elf" in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_images_raise_nothing_but_image_errors(tmp_path_factory, good, data):
    changes = data.draw(st.lists(st.tuples(st.integers(0, 64 + 56 * 6), st.integers(0, 255)), min_size=1, max_size=12))
    damaged = bytearray(good)
    for offset, value in changes:
        damaged[offset] = value
    path = tmp_path_factory.getbasetemp() / "damaged.elf"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged)
    try:
        image = read_image(path)
    except ImageError:
        return
    size = path.stat().st_size
    assert all(s.file_offset + s.file_size <= size and s.gpa >= 0x100000 for s in image.segments)
    assert all(a.end_page <= b.first_page for a, b in zip(image.segments, image.segments[1:], strict=False))
