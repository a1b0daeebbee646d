"""Regions: making, joining, adopting, removing, and what goes wrong with them."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shm
from shm import layout, memory, naming
from shm._shm import ffi, lib

Make = Callable[..., shm.Region]
Fork = Callable[[Callable[[], object]], int]

CHANNELS = (
    shm.ChannelSpec("words"),
    shm.ChannelSpec("many", kind="mpsc", lanes=3, size=4096),
    shm.ChannelSpec("news", kind="broadcast", size=4096),
    shm.ChannelSpec("all", kind="barrier", lanes=4),
)


def test_layout_of_a_region(make: Make) -> None:
    region = make(*CHANNELS, size=5000)
    assert list(region.channels) == ["words", "many", "news", "all"]
    assert len(region.data) >= 5000
    assert region.size % 4096 == 0
    end = 4096
    for info in region.channels.values():
        assert info.offset == end
        assert info.offset % 4096 == 0
        end = info.offset + info.span
    assert region.size - len(region.data) == end
    assert max(max(i.data_bell, i.space_bell) for i in region.channels.values()) == len(region.bells) - 1


def test_data_is_shared(make: Make, name: str) -> None:
    region = make(size=100, serve=True)
    region.data[:5] = b"hello"
    with shm.Region.open(name) as joined:
        assert bytes(joined.data[:5]) == b"hello"
        joined.data[0] = ord("j")
    assert region.data[0] == ord("j")


def test_reader_cannot_write(make: Make, name: str) -> None:
    make(*CHANNELS, size=100, serve=True)
    with shm.Region.open(name, readonly=True) as joined:
        assert joined.data.readonly
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.pwrite(joined.fd, b"x", 0)
        with pytest.raises(shm.ShmError, match="read-only"):
            joined.sender("words")


def test_memory_and_name_go_with_the_region(name: str, runtime: Path) -> None:
    path = Path(f"/dev/shm{naming.posix_name(name)}")
    with shm.Region.create(name, size=100) as region:
        assert path.exists()
        assert naming.socket_path(name).stat().st_mode & 0o777 == 0o600
        fds = [region.fd, *region.bells]
    assert not path.exists()
    assert list(runtime.rglob("*.sock")) == []
    for fd in fds:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(fd)
    region.close()


def test_a_view_outlives_the_region(make: Make) -> None:
    region = make(size=10)
    view = region.data[:3]
    region.close()
    view[0] = 1
    assert bytes(view) == b"\1\0\0"


def test_two_of_one_name(make: Make, name: str) -> None:
    make()
    with pytest.raises(shm.ShmError, match="exists already"):
        shm.Region.create(name)


def test_what_a_killed_owner_left_is_no_hindrance(name: str, fork: Fork, until: Callable[..., None]) -> None:
    def own() -> None:
        shm.Region.create(name, size=100, channels=CHANNELS)
        signal.pause()

    child = fork(own)
    until(lambda: naming.socket_path(name).exists())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert Path(f"/dev/shm{naming.posix_name(name)}").exists()
    with pytest.raises(shm.ShmError, match="nobody serves it"):
        shm.Region.open(name)
    with shm.Region.create(name), shm.Region.open(name) as joined:
        assert not joined.channels


def test_sweep_removes_leftovers(name: str, fork: Fork, until: Callable[..., None]) -> None:
    def own() -> None:
        shm.Region.create(name)
        signal.pause()

    child = fork(own)
    until(lambda: naming.socket_path(name).exists())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    shm.sweep(shm.leftovers(name))
    assert not Path(f"/dev/shm{naming.posix_name(name)}").exists()
    assert not naming.socket_path(name).exists()
    shm.sweep(shm.leftovers(name))


@pytest.mark.parametrize("wrong", ["", "a/b/c", "A", "a b", "a.b", "/a", "a/", "x" * 49, "..", "ä"])
def test_wrong_names(wrong: str) -> None:
    with pytest.raises(shm.ShmError, match="region name"):
        shm.Region.create(wrong)


@pytest.mark.parametrize(
    ("channels", "text"),
    [
        ([shm.ChannelSpec("")], "channel name"),
        ([shm.ChannelSpec("x" * 48)], "channel name"),
        ([shm.ChannelSpec("a"), shm.ChannelSpec("a")], "two of that name"),
        ([shm.ChannelSpec("a", kind="pipe")], "kind 'pipe'"),
        ([shm.ChannelSpec("a", size=0)], "size 0"),
        ([shm.ChannelSpec("a", size=1 << 40)], "size 1099511627776"),
        ([shm.ChannelSpec("a", size=4096, max_message=4096)], "max_message 4096"),
        ([shm.ChannelSpec("a", max_message=0)], "max_message 0"),
        ([shm.ChannelSpec("a", lanes=2)], "lanes 2"),
        ([shm.ChannelSpec("a", kind="mpsc", lanes=0)], "lanes 0"),
        ([shm.ChannelSpec("a", kind="barrier", lanes=1 << 20)], "lanes 1048576"),
    ],
)
def test_wrong_channels(name: str, channels: list[shm.ChannelSpec], text: str) -> None:
    with pytest.raises(shm.ShmError, match=text):
        shm.Region.create(name, channels=channels)


def test_region_that_is_not_there(name: str) -> None:
    with pytest.raises(shm.ShmError, match="cannot be joined"):
        shm.Region.open(name)


def test_channel_that_is_not_there(make: Make) -> None:
    region = make(*CHANNELS)
    with pytest.raises(shm.ShmError, match=r"channel other does not exist \(there: words, many, news, all\)"):
        region.sender("other")
    with pytest.raises(shm.ShmError, match="no role in a barrier"):
        region.sender("all")
    with pytest.raises(shm.ShmError, match="no role in a spsc"):
        region.barrier("words")
    with pytest.raises(shm.ShmError, match="lane 3 does not exist"):
        region.sender("many", lane=3)


def test_larger_than_the_file_system(name: str) -> None:
    with pytest.raises(shm.ShmError, match=r"don't fit in /dev/shm, which has \d+ free"):
        shm.Region.create(name, size=1 << 50)
    assert not Path(f"/dev/shm{naming.posix_name(name)}").exists()


FULL = """
import shm, sys
try:
    shm.Region.create(sys.argv[1], channels=[shm.ChannelSpec("a", size=1 << 19)], serve=False)
except shm.ShmError as error:
    print(error)
"""


@pytest.mark.parametrize(("size", "text"), [("256k", "don't fit in /dev/shm"), ("64m", "")])
def test_full_dev_shm(name: str, size: str, text: str) -> None:
    command = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} -c '{FULL}' {name}"
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no mount namespace of one's own here")
    root = str(Path(shm.__file__).parent.parent)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
    assert text in done.stdout
    assert bool(done.stdout) == bool(text)


def test_reservation_meets_a_full_file_system(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(shm.ShmError, match="/dev/shm: it is full"):
        shm.Region.create(name, channels=CHANNELS)
    assert not Path(f"/dev/shm{naming.posix_name(name)}").exists()


def test_channels_are_reserved_data_is_not(make: Make) -> None:
    region = make(shm.ChannelSpec("a", size=1 << 20), size=8 << 20)
    blocks = os.fstat(region.fd).st_blocks * 512
    assert 1 << 20 <= blocks < 2 << 20


def test_huge_pages_that_are_not_reserved(name: str) -> None:
    free = int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    with pytest.raises(shm.ShmError, match=r"huge pages: too few .*nr_hugepages"):
        shm.Region.create(name, size=(free + 64) * memory.HUGE_PAGE, backing="hugetlb")


def test_a_region_of_huge_pages(name: str) -> None:
    pages = Path("/proc/sys/vm/nr_hugepages")
    # The number is one for the whole host, and other tests change it, too.
    with (Path(tempfile.gettempdir()) / f"hostd-tests-hugepages-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = int(pages.read_text())
        try:
            pages.write_text(str(before + 2))
            if int(pages.read_text()) < before + 2:
                pytest.skip("the host has no huge pages to spare")
            with shm.Region.create(name, size=100, channels=CHANNELS, backing="hugetlb") as region:
                assert region.size == memory.HUGE_PAGE
                with shm.Region.open(name) as joined, joined.sender("words") as sender:
                    sender.send(b"huge")
                    assert region.receiver("words").recv(timeout=5) == b"huge"
        except PermissionError as error:
            pytest.skip(f"huge pages cannot be reserved: {error}")
        finally:
            if os.access(pages, os.W_OK):
                pages.write_text(str(before))


def test_a_region_without_a_name(runtime: Path) -> None:
    """It is handed on as descriptors, of which one who takes it over makes the same region."""
    before = set(os.listdir("/dev/shm"))
    region = shm.Region.create("me/net.lan.a", channels=CHANNELS, backing="memfd", serve=False)
    with region, region.sender("words") as words:
        words.send(b"hello")
        assert set(os.listdir("/dev/shm")) == before
        held = [os.dup(fd) for fd in (region.fd, *region.bells)]
        with shm.Region.adopt("me/net.lan.a", held[0], held[1:], CHANNELS, backing="memfd") as taken:
            assert taken.receiver("words").recv(timeout=5) == b"hello"
    with pytest.raises(shm.ShmError, match="region name"):
        shm.Region.create("me/net.lan.a", backing="memfd")


def test_a_region_in_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "region"
    with shm.Region.create(name, size=100, channels=CHANNELS, backing=path, serve=False) as region:
        region.data[:2] = b"hi"
        assert path.read_bytes()[region.size - len(region.data) :][:2] == b"hi"
        with pytest.raises(shm.ShmError, match="in use"):
            shm.Region.create("another", backing=path, serve=False)
    with shm.Region.create(name, size=100, backing=path, serve=False) as region:
        assert bytes(region.data[:2]) == b"\0\0"


def test_a_file_that_is_no_region(name: str, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("letters to nobody")
    with pytest.raises(shm.ShmError, match="is no region's"):
        shm.Region.create(name, backing=path)
    assert path.read_text() == "letters to nobody"
    with pytest.raises(shm.ShmError, match="No such file"):
        shm.Region.create(name, backing=tmp_path / "nowhere" / "x")
    with pytest.raises(shm.ShmError, match="backing 'tape'"):
        shm.Region.create(name, backing="tape")


def test_adopting(make: Make, name: str) -> None:
    old = make(*CHANNELS, size=50)
    with old.sender("words") as sender:
        sender.send(b"before")
    bells = [os.dup(bell) for bell in old.bells]
    found = shm.Region.adopt(name, os.open(f"/proc/self/fd/{old.fd}", os.O_RDONLY), bells)
    assert found.channels == old.channels
    assert len(found.data) == len(old.data)
    with found.receiver("words") as receiver:
        assert receiver.recv(timeout=5) == b"before"
    found.close()


def test_adopting_with_the_channels_known(make: Make, name: str) -> None:
    old = make(*CHANNELS)
    bells = [os.dup(bell) for bell in old.bells]
    found = shm.Region.adopt(name, os.dup(old.fd), bells, CHANNELS)
    assert found.channels == old.channels
    found.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4096 // 8 - 1), st.integers(0, 2**64 - 1)), max_size=8), st.booleans())
def test_a_spoiled_directory_is_refused_or_harmless(changes: list[tuple[int, int]], near: bool) -> None:
    """Whatever the header and the directory say, what is read of them lies in the region."""
    parts = layout.lay_out(CHANNELS, 100)
    block = ffi.new("char[]", parts.size)
    layout.write(block, "a/b", parts)
    assert layout.read(block, parts.size, parts.bells, "x") == parts
    words = ffi.cast("uint64_t *", block)
    for at, value in changes:
        words[at % 96 if near else at] = value
    try:
        found = layout.read(block, parts.size, parts.bells, "region x")
    except shm.ShmError:
        return
    assert found.data_offset <= found.size == parts.size
    for info in found.channels:
        assert lib.end_bytes(info.config()) <= info.span
        assert info.offset + info.span <= parts.size
        assert max(info.data_bell, info.space_bell) < parts.bells
