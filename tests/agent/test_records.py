"""The records of a copy that a guest sends: nothing of it leads out of where it is to go."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestlib.linux import protocol
from guestlib.linux.protocol import Kind
from hostd.agent.link import AgentError
from hostd.agent.records import Reading, Writing


def record(
    kind: int, path: bytes, content: bytes = b"", *, mode: int = 0o644, target: bytes = b"", size: int | None = None
) -> bytes:
    length = len(content) if size is None else size
    return protocol.RECORD.pack(kind, mode, 0, 0, 0, length, len(path), len(target)) + path + target + content


TOP = record(Kind.DIRECTORY, b"", mode=0o755)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for the copy, beside a file that is none of the guest's business."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("safe")
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def write(place: Path, data: bytes, chunk: int = 1 << 20) -> None:
    with Writing(place, "copy") as writing:
        for at in range(0, len(data), chunk):
            writing.feed(data[at : at + chunk])
        writing.finish()


def intact(place: Path) -> bool:
    outside = place.parent / "outside"
    names = sorted(os.listdir(place.parent)) == ["outside", "place"] and os.listdir(outside) == ["file"]
    return names and (outside / "file").read_text() == "safe" and set(os.listdir(place)) <= {"copy"}


@pytest.mark.parametrize(
    "records",
    [
        TOP + record(Kind.FILE, b"../out", b"x"),
        TOP + record(Kind.FILE, b"/etc/passwd", b"x"),
        TOP + record(Kind.FILE, b"a/../../out", b"x"),
        TOP + record(Kind.FILE, b"./a", b"x"),
        TOP + record(Kind.FILE, b"a//b", b"x"),
        TOP + record(Kind.FILE, b"a\0b", b"x"),
        TOP + record(Kind.SYMLINK, b"s", target=b"../../outside") + record(Kind.FILE, b"s/file", b"x"),
        TOP + record(Kind.SYMLINK, b"s", target=b"../../outside") + record(Kind.DIRECTORY, b"s", mode=0),
        TOP + record(Kind.FILE, b"f", b"x") + record(Kind.FILE, b"f/g", b"x"),
        TOP + record(Kind.FILE, b"none/g", b"x"),
        TOP + TOP,
        TOP + record(9, b"f"),
        TOP + protocol.RECORD.pack(Kind.FILE, 0, 0, 0, 0, 0, 60000, 60000),
        TOP + record(Kind.FILE, b"f", b"x", size=1 << 60),
        record(Kind.FILE, b"f", b"x"),
        record(Kind.SYMLINK, b"", target=b"../outside") + record(Kind.FILE, b"f", b"x"),
        TOP[:-1],
        b"",
    ],
)
def test_records_that_lead_elsewhere_are_refused(place: Path, records: bytes) -> None:
    with pytest.raises(AgentError):
        write(place, records)
    assert intact(place)
    assert not list(place.rglob(".copying-*"))


def test_a_link_is_replaced_and_not_written_through(place: Path) -> None:
    (place / "copy").mkdir()
    (place / "copy/s").symlink_to("../../outside/file")
    write(place, TOP + record(Kind.FILE, b"s", b"new"))
    assert (place / "copy/s").read_bytes() == b"new"
    assert intact(place)


def test_no_right_comes_along(place: Path) -> None:
    write(place, TOP + record(Kind.FILE, b"f", b"x", mode=0o6777))
    assert stat.S_IMODE((place / "copy/f").stat().st_mode) == 0o777


def test_what_is_read_is_what_is_written_however_it_is_cut(place: Path, tmp_path: Path) -> None:
    source = place.parent / "outside"
    (source / "sub").mkdir(mode=0o750)
    (source / "sub/data").write_bytes(os.urandom(5000))
    reading = Reading(source)
    data = b"".join(reading.chunks())
    assert (reading.files, reading.size, reading.skipped) == (4, 5004, 0)
    write(place, data, chunk=7)
    assert (place / "copy/sub/data").read_bytes() == (source / "sub/data").read_bytes()
    assert stat.S_IMODE((place / "copy/sub").stat().st_mode) == 0o750


NAMES = st.sampled_from([b"", b"a", b"b", b"..", b".", b"s", b"a/b", b"s/file", b"a/../b", b"/", b"a/b/c"])
RECORDS = st.builds(
    record,
    st.integers(0, 4),
    NAMES,
    st.binary(max_size=20),
    mode=st.integers(0, 0o7777),
    target=st.sampled_from([b"", b"..", b"../../outside", b"/", b"a"]),
    size=st.one_of(st.none(), st.integers(0, 40)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, max_size=8), junk=st.binary(max_size=60), top=st.booleans())
def test_no_records_at_all_lead_elsewhere(place: Path, records: list[bytes], junk: bytes, top: bool) -> None:
    with contextlib.suppress(AgentError, OSError):
        write(place, (TOP if top else b"") + b"".join(records) + junk, chunk=33)
    assert intact(place)
