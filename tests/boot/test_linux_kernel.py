"""Kernel images: every way to pack one, what is wrong with others, and the cache."""

import lzma
import multiprocessing
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linux_images import (
    CODE_SIZE,
    DATA,
    ENTRY,
    PACKERS,
    PAGE,
    PROGRAM_HEADERS,
    PVH_ENTRY,
    RELEASE,
    TEXT,
    Load,
    Vmlinux,
    bzimage,
    lz4_legacy,
    size_of,
)

from hostd.boot import ImageError
from hostd.boot.linux import bzimage as reader
from hostd.boot.linux.kernel import Kernel, open_kernel
from hostd.boot.linux.vmlinux import ZERO_RUN


def opened(tmp_path: Path, data: bytes, name: str = "kernel") -> Kernel:
    path = tmp_path / name
    path.write_bytes(data)
    return open_kernel(path, tmp_path / "cache")


def changed(data: bytes, offset: int, layout: str, value: int) -> bytes:
    out = bytearray(data)
    struct.pack_into("<" + layout, out, offset, value)
    return bytes(out)


def in_header(data: bytes, index: int, field: int, value: int) -> bytes:
    """Change a 64-bit field of program header `index`."""
    return changed(data, PROGRAM_HEADERS + 56 * index + field, "Q", value)


def test_a_vmlinux_is_mapped_where_it_lies(tmp_path):
    kernel = opened(tmp_path, Vmlinux().build())
    assert kernel.path == kernel.source == str(tmp_path / "kernel")
    assert [(s.gpa, s.flags) for s in kernel.segments] == [(TEXT, 5), (DATA, 6)]
    assert (kernel.entry64, kernel.pvh, kernel.version) == (ENTRY, PVH_ENTRY, RELEASE)
    assert kernel.code == (TEXT, TEXT + CODE_SIZE)
    assert (kernel.start, kernel.end) == (TEXT, DATA + 4 * PAGE)
    assert kernel.setup_header == b""


@pytest.mark.parametrize("packer", PACKERS)
def test_a_bzimage_is_unpacked_once(tmp_path, packer):
    vmlinux = Vmlinux().build()
    image = bzimage(PACKERS[packer](vmlinux))
    kernel = opened(tmp_path, image)
    assert Path(kernel.path).read_bytes() == vmlinux
    assert Path(kernel.path).parent == tmp_path / "cache"
    assert kernel.version == RELEASE
    assert kernel.setup_header[0x202 - 0x1F1 :].startswith(b"HdrS")
    assert len(kernel.setup_header) == 0x202 + 0x6A - 0x1F1
    inode = Path(kernel.path).stat().st_ino
    again = opened(tmp_path, image, "copy")
    assert (again.path, Path(again.path).stat().st_ino) == (kernel.path, inode)
    assert not list((tmp_path / "cache").glob(".*.part"))


def test_blocks_of_lz4_follow_each_other(tmp_path):
    vmlinux = Vmlinux()
    vmlinux.loads[1].content = bytes(range(256)) * (17 << 12)
    vmlinux.loads[1].memsz = len(vmlinux.loads[1].content)
    data = vmlinux.build()
    assert len(data) > 16 << 20
    assert Path(opened(tmp_path, bzimage(lz4_legacy(data))).path).read_bytes() == data


def test_a_kernel_as_plain_values_comes_back(tmp_path):
    msgpack = pytest.importorskip("msgpack")
    kernel = opened(tmp_path, bzimage(PACKERS["gzip"](Vmlinux().build())))
    assert Kernel.of(msgpack.unpackb(msgpack.packb(kernel.plain()))) == kernel


def test_without_notes_and_sections_there_is_the_64_bit_entry_alone(tmp_path):
    kernel = opened(tmp_path, Vmlinux(pvh=None, sections=False).build())
    assert (kernel.pvh, kernel.entry64, kernel.code) == (None, ENTRY, (0, 0))


def test_what_is_known_is_forgotten_when_the_file_changes(tmp_path):
    first = opened(tmp_path, Vmlinux().build())
    second = opened(tmp_path, Vmlinux(pvh=None).build())
    assert (first.pvh, second.pvh) == (PVH_ENTRY, None)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"kernel": {}, "vmlinux": [1, 2]}'])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    image = bzimage(PACKERS["gzip"](Vmlinux().build()))
    kernel = opened(tmp_path, image)
    for known in (tmp_path / "cache").glob("*.kernel"):
        known.chmod(0o644)
        known.write_text(damage)
    assert open_kernel(tmp_path / "kernel", tmp_path / "cache") == kernel
    Path(kernel.path).unlink()
    assert open_kernel(tmp_path / "kernel", tmp_path / "cache") == kernel
    assert Path(kernel.path).read_bytes() == Vmlinux().build()


def _open(path: str, cache: str, start: multiprocessing.Event, results: multiprocessing.Queue) -> None:
    start.wait(20)
    kernel = open_kernel(path, Path(cache))
    results.put((kernel.path, Path(kernel.path).stat().st_ino))


def test_makers_at_the_same_time_end_with_one_file(tmp_path):
    (tmp_path / "kernel").write_bytes(bzimage(PACKERS["xz"](Vmlinux().build())))
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    makers = [
        context.Process(target=_open, args=(str(tmp_path / "kernel"), str(tmp_path / "cache"), start, results))
        for _ in range(6)
    ]
    for maker in makers:
        maker.start()
    start.set()
    found = {results.get(timeout=60) for _ in makers}
    for maker in makers:
        maker.join(20)
    assert len(found) == 1


VMLINUX = Vmlinux().build()
PACKED = PACKERS["gzip"](VMLINUX)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "neither an ELF file nor a bzImage"),
        (b"hello, world\n" * 100, "neither an ELF file nor a bzImage"),
        (bzimage(PACKED)[:0x210], "cut off.*setup header"),
        (bzimage(PACKED)[:-200], "cut off: payload_offset and payload_length"),
        (bzimage(PACKED, protocol=0x0207), "boot protocol 0x0207"),
        (bzimage(PACKED, xloadflags=0), "32-bit kernel .xloadflags"),
        (bzimage(PACKERS["xz"](VMLINUX)[:-4] + size_of(VMLINUX + b"x")), f"unpacks to {len(VMLINUX)} bytes, but says"),
        (bzimage(PACKED[:-4] + size_of(VMLINUX[:-1])), "unpacks to more than|damaged"),
        (bzimage(PACKED[:-4] + b"\xff\xff\xff\xff"), "at most 1073741824"),
        (bzimage(PACKED[:100] + size_of(VMLINUX)), "damaged or cut off"),
        (bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(100) + size_of(VMLINUX)), "89 4c 5a 4f.*vmlinux"),
        (bzimage(PACKERS["xz"](b"no vmlinux at all")), "no ELF file, so no vmlinux"),
        (VMLINUX[:40], "damaged or cut off"),
        (VMLINUX[:PAGE], "cut off"),
        (VMLINUX[: 3 * PAGE], "cut off"),
        (changed(VMLINUX, 4, "B", 1), "32-bit kernel"),
        (changed(VMLINUX, 18, "H", 183), "e_machine"),
        (changed(VMLINUX, 16, "H", 1), "e_type"),
        (changed(VMLINUX, 16, "H", 3), "e_type"),
        (changed(VMLINUX, 56, "H", 1000), "cut off|e_phnum"),
        (Vmlinux(entry=0).build(), "e_entry is 0x0"),
        (Vmlinux(entry=DATA).build(), "e_entry is 0x1400000, in no executable"),
        (Vmlinux(pvh=0x100).build(), "PVH entry .note Xen 18. is 0x100"),
        (Vmlinux(pvh=PVH_ENTRY, pvh_size=16).build(), "16 bytes instead of 4 or 8"),
        (Vmlinux(loads=[]).build(), "no PT_LOAD"),
        (Vmlinux(loads=[Load(TEXT, 5, b"x" * PAGE, PAGE), Load(TEXT + 0x10, 6, b"", PAGE)]).build(), "modulo"),
        (Vmlinux(loads=[Load(TEXT, 5, b"x" * PAGE, PAGE), Load(TEXT, 6, b"", PAGE)]).build(), "overlap or share"),
        (Vmlinux(loads=[Load(0x1000, 5, b"x" * PAGE, PAGE)], entry=0x1000, pvh=None).build(), "p_paddr is below"),
        (in_header(VMLINUX, 0, 40, 1 << 40), "above 4 GiB"),
        (in_header(VMLINUX, 0, 40, 1), "p_filesz"),
        (in_header(VMLINUX, 0, 8, 1 << 40), "is cut off"),
        (in_header(VMLINUX, 2, 32, 1 << 30), "PT_NOTE"),
    ],
)
def test_what_is_no_kernel_is_one_sentence(tmp_path, data, text):
    with pytest.raises(ImageError, match=text) as caught:
        opened(tmp_path, data)
    assert str(caught.value).startswith(f"{tmp_path}/kernel: ")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.vmlinux")) or b"no vmlinux" in str(caught.value).encode()


@pytest.mark.parametrize("packer", PACKERS)
def test_a_bomb_ends_at_the_size_it_says(tmp_path, packer):
    bomb = PACKERS[packer](bytes(64 << 20))
    path = tmp_path / "bomb"
    path.write_bytes(bzimage(bomb[:-4] + size_of(VMLINUX)))
    with path.open("rb") as file, (tmp_path / "out").open("wb") as out:
        packed = reader.read_header(path, file)
        with pytest.raises(ImageError, match="unpacks to more than"):
            reader.unpack(path, file, packed, out)
        assert out.tell() <= len(VMLINUX)


def test_a_dictionary_larger_than_any_kernel_wants_is_refused(tmp_path):
    # The header of an .lzma stream: properties, dictionary size, unpacked size.
    stream = lzma.compress(VMLINUX, lzma.FORMAT_ALONE)
    stream = stream[:1] + struct.pack("<I", 1 << 31) + stream[5:]
    with pytest.raises(ImageError, match=r"lzma payload is damaged.*[Mm]emory"):
        opened(tmp_path, bzimage(stream + size_of(VMLINUX)))


FUZZED = {name: bzimage(pack(VMLINUX)) for name, pack in PACKERS.items()} | {"vmlinux": VMLINUX}
# Where damage matters most: headers, the beginning of the payload, the end.
interesting = st.one_of(st.integers(0, 0x2A0), st.integers(3 * 512 + 100, 3 * 512 + 300), st.integers(0, 1 << 20))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(FUZZED)),
    changes=st.lists(st.tuples(interesting, st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.one_of(st.none(), st.integers(0, 1 << 16)),
)
def test_damaged_kernels_raise_nothing_but_image_errors(tmp_path_factory, kind, changes, cut):
    data = bytearray(FUZZED[kind])
    for offset, value in changes:
        data[offset % len(data)] = value
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    try:
        kernel = opened(folder, bytes(data[:cut]))
    except ImageError:
        return
    finally:
        for made in (folder / "cache").glob("*"):
            if made.name != "lock":
                made.unlink()
    size = len(VMLINUX) if kernel.path != kernel.source else len(data[:cut])
    assert all(s.file_offset + s.file_size <= size and s.gpa >= 0x100000 for s in kernel.segments)
    assert kernel.end <= 1 << 32
    assert any(s.gpa <= kernel.entry64 < s.gpa + s.file_size for s in kernel.segments)


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.tuples(st.booleans(), st.integers(1, 3 * ZERO_RUN // PAGE)), min_size=1, max_size=6),
    tail=st.integers(0, PAGE),
    more=st.integers(0, 3 * PAGE),
)
def test_long_runs_of_zeros_are_memory_and_not_the_files(tmp_path_factory, runs, tail, more):
    content = b"\1" * PAGE + b"".join((b"\0" if zero else b"\2") * PAGE * pages for zero, pages in runs) + b"\3" * tail
    load = Load(DATA, 6, content, len(content) + more)
    folder = tmp_path_factory.mktemp("zeros")
    kernel = opened(folder, Vmlinux(loads=[Load(TEXT, 5, b"x" * PAGE, PAGE), load], pvh=None).build())
    shutil.rmtree(folder / "cache")
    data = (folder / "kernel").read_bytes()
    memory = bytearray(len(content) + more)
    at = DATA
    for segment in kernel.segments[1:]:
        assert segment.gpa == at
        assert segment.flags == 6
        assert segment.file_size <= segment.memory_size
        mapped = data[segment.file_offset : segment.file_offset + segment.file_size]
        assert bytes(ZERO_RUN + PAGE) not in mapped
        memory[at - DATA : at - DATA + len(mapped)] = mapped
        at += segment.memory_size
    assert at == DATA + len(content) + more
    assert bytes(memory) == content + bytes(more)
