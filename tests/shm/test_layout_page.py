"""docs/rings.md tells every offset; this holds it against the C structs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shm._shm import ffi, lib

PAGE = (Path(__file__).parent.parent.parent / "docs" / "rings.md").read_text()
ROW = re.compile(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", re.MULTILINE)
SECTIONS = re.split(r"^#+ ", PAGE, flags=re.MULTILINE)
TABLES = {found[1]: ROW.findall(text) for text in SECTIONS if (found := re.match(r"`struct (\w+)`", text))}


@pytest.mark.parametrize(
    "struct",
    [
        "shm_region_header",
        "shm_channel_entry",
        "ring_shared",
        "mpsc_shared",
        "broadcast_shared",
        "barrier_shared",
        "barrier_party",
    ],
)
def test_offsets_in_the_page(struct: str) -> None:
    told = {field: (int(offset), int(size)) for offset, size, field in TABLES[struct]}
    fields = {name: field for name, field in ffi.typeof(f"struct {struct}").fields if not name.startswith("reserved")}
    assert told == {name: (field.offset, ffi.sizeof(field.type)) for name, field in fields.items()}


@pytest.mark.parametrize("struct", list(TABLES))
def test_sizes_in_the_page(struct: str) -> None:
    told = re.search(rf"`struct {struct}`, (\d+) bytes", PAGE)
    assert told is not None
    assert int(told[1]) == ffi.sizeof(f"struct {struct}")


def test_numbers_in_the_page() -> None:
    told = dict(re.findall(r"^\| `([A-Z_]+)` \| (0x[0-9a-f]+|\d+) \|", PAGE, re.MULTILINE))
    assert {"SHM_MAGIC", "SHM_VERSION", "RING_PAD", "SHM_GONE", "SHM_BARRIER", "SHM_ALWAYS_RING"} <= set(told)
    assert {name: int(value, 0) for name, value in told.items()} == {name: getattr(lib, name) for name in told}
