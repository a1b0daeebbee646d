"""guestlib.attach(): regions and channels in a Linux guest, over a sysfs that is faked."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_guest import FakeGuest  # type: ignore[import-not-found]

import guestlib
import shm
from guestlib.linux.device import devices
from shm._shm import lib


@pytest.fixture
def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[shm.Region]:
    """The host's side: a region with a channel of each kind, all fenced."""
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(tmp_path / "runtime"))
    channels = [
        shm.ChannelSpec("there", fenced=True),
        shm.ChannelSpec("back", fenced=True, size=4096),
        shm.ChannelSpec("many", "mpsc", lanes=3, fenced=True),
        shm.ChannelSpec("news", "broadcast", fenced=True),
        shm.ChannelSpec("meet", "barrier", lanes=2, fenced=True),
    ]
    name = f"guesttest-{os.getpid()}/link"
    with shm.Region.create(name, channels=channels, size=8192, serve=False, backing=tmp_path / "memory") as region:
        yield region


LINES = [
    "there link receive 0 1 1",
    "back link send 0 1 1",
    "many link send 1 3 1",
    "news link receive 0 1 1",
    "meet link join 1 2 1",
]


@pytest.fixture
def fake(tmp_path: Path, region: shm.Region) -> Iterator[Callable[..., FakeGuest]]:
    made: list[FakeGuest] = []

    def make(lines: list[str] = LINES, **more: Any) -> FakeGuest:
        made.append(FakeGuest(tmp_path / f"guest{len(made)}", region, lines, **more))
        return made[-1]

    yield make
    for guest in made:
        guest.close()


def attach(fake: FakeGuest, **more: Any) -> guestlib.Guest:
    return guestlib.attach(sysfs=fake.sysfs, run=fake.run, dev=fake.dev, **more)


def test_a_channel_is_had_by_name_and_works_both_ways(fake: Callable[..., FakeGuest], region: shm.Region) -> None:
    with attach(fake()) as guest, guest.receiver("there") as there, guest.sender("back") as back:
        assert (guest.name, guest.cluster) == ("a", "tests")
        with region.sender("there") as to_guest, region.receiver("back") as from_guest:
            for number in range(500):
                to_guest.send(b"%d" % number, timeout=5)
                assert there.recv(timeout=5) == b"%d" % number
                back.send(b"re %d" % number, timeout=5)
                assert from_guest.recv(timeout=5) == b"re %d" % number


def test_the_device_is_enabled_and_its_memory_is_the_region(fake: Callable[..., FakeGuest], region: shm.Region) -> None:
    made = fake()
    with attach(made) as guest:
        found = guest.regions["link"]
        region.data[:5] = b"bytes"
        assert bytes(found.data[:5]) == b"bytes"
        found.data[8000:8004] = b"back"
        assert bytes(region.data[8000:8004]) == b"back"
        assert (found.size, len(found.data)) == (region.size, len(region.data))
        assert dict(found.channels) == dict(region.channels)
    assert (made.device / "enable").read_text().strip() == "1"


def test_a_sender_rings_the_regions_bell_by_the_doorbell_register(
    fake: Callable[..., FakeGuest], region: shm.Region, until: Callable[[Callable[[], object]], None]
) -> None:
    made = fake()
    with attach(made) as guest, guest.sender("back") as back, region.receiver("back") as receiver:
        made.doorbell()
        receiver.spin_ns = 0
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(receiver.recv(timeout=10)))
        thread.start()
        until(lambda: receiver.sleeps)
        back.send(b"wake")
        assert made.doorbell() == region.channels["back"].data_bell  # peer 0, vector: the bell
        assert back.rings == 1
        thread.join()
        assert got == [b"wake"]


def test_a_receiver_sleeps_on_the_interrupt_and_lets_the_next_one_through(
    fake: Callable[..., FakeGuest], region: shm.Region, until: Callable[[Callable[[], object]], None]
) -> None:
    made = fake()
    made.with_uio()
    with attach(made, uio=True) as guest, guest.receiver("there") as there, region.sender("there") as sender:
        assert not made.masked()
        made.registers[4] = 1
        made.serve(region, region.channels["there"].data_bell)
        there.spin_ns = 0
        got: list[bytes] = []

        def receive() -> None:
            got.extend(there.recv(timeout=10) for _ in range(20))

        thread = threading.Thread(target=receive)
        thread.start()
        for number in range(20):
            asleep = there.sleeps
            until(lambda asleep=asleep: there.sleeps > asleep)
            sender.send(b"%d" % number)
        thread.join()
        assert got == [b"%d" % number for number in range(20)]
        until(lambda: not made.masked() or sender.rings)
        assert sender.rings > 0


def test_without_uio_waiting_is_napping_and_nobody_is_asked_to_ring(
    fake: Callable[..., FakeGuest], region: shm.Region, until: Callable[[Callable[[], object]], None]
) -> None:
    with attach(fake(), uio=False) as guest, guest.receiver("there") as there, region.sender("there") as sender:
        there.spin_ns = 0
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(there.recv(timeout=10)))
        thread.start()
        until(lambda: there.sleeps > 5)
        sender.send(b"seen")
        thread.join()
        assert (got, sender.rings, there.late) == ([b"seen"], 0, 0)


@pytest.mark.parametrize("uio", [True, False], ids=["sleeping", "napping"])
def test_a_peer_that_died_is_noticed_while_waiting(
    fake: Callable[..., FakeGuest], region: shm.Region, until: Callable[[Callable[[], object]], None], uio: bool
) -> None:
    made = fake()
    if uio:
        made.with_uio()  # And nobody turns rings into interrupts: the look around must do.
    with attach(made, uio=uio) as guest, guest.receiver("there") as there:
        there.spin_ns = 0
        sender = region.sender("there")
        sender.send(b"last")
        errors: list[BaseException] = []

        def receive() -> None:
            assert there.recv(timeout=10) == b"last"
            try:
                there.recv(timeout=10)
            except shm.PeerGone as error:
                errors.append(error)

        thread = threading.Thread(target=receive)
        thread.start()
        until(lambda: there.sleeps > 1)
        region.mark_gone("there", role="send")
        thread.join()
        assert len(errors) == 1
        sender.close()


def test_every_kind_of_channel(fake: Callable[..., FakeGuest], region: shm.Region) -> None:
    with attach(fake()) as guest, region.receiver("many") as many, region.sender("news") as news:
        with guest.sender("many") as lane, guest.receiver("news") as reader, guest.barrier("meet") as here:
            assert (lane.lane, here.lane) == (1, 1)
            lane.send(b"mine")
            assert (many.recv(timeout=5), many.sender_lane) == (b"mine", 1)
            news.send(b"today")
            assert reader.recv(timeout=5) == b"today"
            party = region.barrier("meet", 0)
            thread = threading.Thread(target=lambda: party.wait(timeout=10))
            thread.start()
            here.wait(timeout=10)
            thread.join()
            party.close()


def test_an_end_is_one_processs_at_a_time(fake: Callable[..., FakeGuest]) -> None:
    made = fake()
    with attach(made) as first, attach(made) as second:
        end = first.receiver("there")
        with pytest.raises(shm.ShmError, match="another process of this guest"):
            second.receiver("there")
        end.close()
        second.receiver("there").close()
        readers = [first.receiver("news"), second.receiver("news")]
        assert [reader.lane for reader in readers] == [0, 0]


def test_a_process_that_dies_leaves_its_end_to_the_next(fake: Callable[..., FakeGuest]) -> None:
    made = fake()
    child = os.fork()
    if child == 0:
        attach(made).receiver("there")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with attach(made) as guest:
        guest.receiver("there").close()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda guest: guest.sender("there"), "cannot send: this guest may receive"),
        (lambda guest: guest.receiver("nothing"), "channel nothing is none of this guest's .*there, back"),
        (lambda guest: guest.region("sea"), r"region sea does not exist \(there: link\)"),
        (lambda guest: guest.sender("many", 2), "cannot send on lane 2: this guest may send .lane 1."),
        (lambda guest: guest.region("link").mark_gone("there", role="send"), "only the host"),
    ],
)
def test_what_is_not_this_guests_is_told(
    fake: Callable[..., FakeGuest], wrong: Callable[[guestlib.Guest], object], words: str
) -> None:
    with attach(fake()) as guest, pytest.raises(shm.ShmError, match=words):
        wrong(guest)


def test_a_region_that_is_read_only_is_only_read(fake: Callable[..., FakeGuest], region: shm.Region) -> None:
    with attach(fake(access="ro")) as guest, guest.receiver("news") as reader, region.sender("news") as news:
        news.send(b"today")
        assert reader.recv(timeout=5) == b"today"
        with pytest.raises(shm.ShmError, match="read-only"):
            guest.sender("back")
        with pytest.raises(TypeError):
            guest.region("link").data[0] = 1


def test_where_nothing_was_handed_over_the_header_names_the_region(
    fake: Callable[..., FakeGuest], region: shm.Region
) -> None:
    with attach(fake(handed=False)) as guest, region.sender("there") as sender:
        assert list(guest.regions) == ["link"]
        with guest.region("link").receiver("there") as there:
            sender.send(b"found")
            assert there.recv(timeout=5) == b"found"


def test_uio_that_is_insisted_on_and_absent_is_an_error(fake: Callable[..., FakeGuest]) -> None:
    with attach(fake(), uio=True) as guest, pytest.raises(shm.ShmError, match="no UIO device"):
        guest.region("link")


def test_a_device_that_is_not_there_is_told(fake: Callable[..., FakeGuest]) -> None:
    made = fake()
    (made.run / "regions").write_text("link 0000:00:09.0 rw 1\n")
    with attach(made) as guest, pytest.raises(shm.ShmError, match="no ivshmem device at PCI address"):
        guest.region("link")


@pytest.mark.parametrize("line", ["there link receive", "there link eat 0 1 1", "there link receive x 1 1"])
def test_lines_that_are_none_are_told(fake: Callable[..., FakeGuest], line: str) -> None:
    with pytest.raises(shm.ShmError, match="a line is not CHANNEL REGION"):
        attach(fake([line]))


def test_what_hostd_said_counts_and_not_what_a_peer_wrote(fake: Callable[..., FakeGuest], region: shm.Region) -> None:
    info = region.channels["there"]
    where = f"{info.kind} {info.offset} {info.size} {info.max_message} {info.data_bell} {info.space_bell}"
    made = fake([f"there link receive 0 1 {info.flags} {where}"])
    with open(f"/proc/self/fd/{region.fd}", "r+b") as memory:
        memory.seek(lib.SHM_DIRECTORY)
        memory.write(b"\xee" * 128)  # a hostile peer, over the entry of this channel
    with attach(made) as guest, region.sender("there") as sender, guest.receiver("there") as there:
        sender.send(b"all the same")
        assert there.recv(timeout=5) == b"all the same"
    with pytest.raises(shm.ShmError, match="spoiled"):
        attach(fake(["there link receive 0 1 1"])).region("link")


def test_a_file_without_structure_is_its_bytes(tmp_path: Path, region: shm.Region) -> None:
    made = FakeGuest(tmp_path / "raw", region, [])
    plain = tmp_path / "plain"
    plain.write_bytes(b"plain bytes" + bytes(8181))
    (made.device / "resource2").unlink()
    (made.device / "resource2").symlink_to(plain)
    with attach(made) as guest:
        assert dict(guest.region("link").channels) == {}
        assert bytes(guest.region("link").data[:11]) == b"plain bytes"
    made.close()


def test_a_regions_size_is_what_hostd_said(fake: Callable[..., FakeGuest], region: shm.Region) -> None:
    made = fake()
    os.truncate(region.backing, 1 << 20)  # as BAR2 is, a power of two
    with attach(made) as guest:
        assert guest.region("link").size == region.size  # by its header
    with open(region.backing, "r+b") as memory:
        memory.seek(16)
        memory.write(b"\xff" * 8)  # a hostile peer, over the header's size
    with attach(made) as guest:
        assert guest.region("link").size == 1 << 20
    (made.run / "regions").write_text(f"link 0000:00:05.0 rw 1 {region.size}\n")
    with attach(made) as guest:
        assert guest.region("link").size == region.size


def test_a_device_without_an_interrupt_is_polled(fake: Callable[..., FakeGuest], region: shm.Region) -> None:
    made = fake()
    (made.device / "uio" / "uio0").mkdir(parents=True)
    (made.dev / "uio0").symlink_to("/proc/self/mem")  # Reading it at 0 is EIO, as reading such a UIO device is.
    with attach(made, uio=True) as guest, guest.receiver("there") as there, region.sender("there") as sender:
        there.spin_ns = 0
        with pytest.raises(shm.ChannelTimeout):
            there.recv(timeout=0.01)
        sender.send(b"seen")
        assert there.recv(timeout=5) == b"seen"
        assert (there.late, sender.rings) == (0, 0)


def test_the_device_is_bound_to_uio_and_nobody_elses_is_taken(fake: Callable[..., FakeGuest]) -> None:
    made = fake()
    driver = made.sysfs / "bus" / "pci" / "drivers" / "uio_pci_generic"
    driver.mkdir(parents=True)
    (driver / "bind").write_text("")
    (made.device / "subsystem").symlink_to(made.sysfs / "bus" / "pci")
    [device] = devices(made.sysfs, made.dev)
    (made.device / "driver").mkdir()
    assert device.uio() is None
    assert not (made.device / "driver_override").exists()
    (made.device / "driver").rmdir()
    assert device.uio() is None  # No kernel here to bind it.
    assert (made.device / "driver_override").read_text() == "uio_pci_generic"
    assert (driver / "bind").read_text() == made.device.name


@pytest.mark.skipif(os.geteuid() != 0, reason="device files are root's to make")
def test_a_device_file_that_nobody_made_is_made(fake: Callable[..., FakeGuest]) -> None:
    made = fake()
    (made.device / "uio" / "uio3").mkdir(parents=True)
    (made.device / "uio" / "uio3" / "dev").write_text("247:3\n")
    [device] = devices(made.sysfs, made.dev)
    node = device.uio()
    assert node == made.dev / "uio3"
    assert (stat.S_ISCHR(node.stat().st_mode), os.major(node.stat().st_rdev), os.minor(node.stat().st_rdev)) == (
        True,
        247,
        3,
    )


def test_only_ivshmem_devices_count(fake: Callable[..., FakeGuest]) -> None:
    made = fake()
    other = made.device.parent / "0000:00:02.0"
    other.mkdir()
    (other / "vendor").write_text("0x1af4\n")
    (other / "device").write_text("0x1041\n")
    (made.device.parent / "0000:00:03.0").mkdir()
    assert [device.address for device in devices(made.sysfs, made.dev)] == [made.device.name]
