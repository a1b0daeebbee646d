"""guestctl, over a sysfs that is faked: what it shows, sends, receives and measures."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_guest import FakeGuest  # type: ignore[import-not-found]

import shm

LINES = ["there link receive 0 1 1", "back link send 0 1 1", "news link receive 0 1 1", "many link send 2 3 1"]
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def region(tmp_path: Path) -> Iterator[shm.Region]:
    channels = [
        shm.ChannelSpec("there", fenced=True),
        shm.ChannelSpec("back", fenced=True, size=4096, max_message=100),
        shm.ChannelSpec("news", "broadcast", fenced=True),
        shm.ChannelSpec("many", "mpsc", lanes=3, fenced=True),
    ]
    name = f"ctltest-{os.getpid()}/link"
    with shm.Region.create(name, channels=channels, serve=False, backing=tmp_path / "memory") as region:
        yield region


@pytest.fixture
def fake(tmp_path: Path, region: shm.Region) -> Iterator[FakeGuest]:
    fake = FakeGuest(tmp_path / "guest", region, LINES)
    yield fake
    fake.close()


@pytest.fixture
def guestctl(agent_binary: Path, fake: FakeGuest) -> Callable[..., subprocess.Popen[bytes]]:
    def start(*words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["guestctl", "-R", str(fake.run.parent), "-t", "20", *words],
            executable=agent_binary,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


@pytest.fixture
def run(guestctl: Callable[..., subprocess.Popen[bytes]]) -> Run:
    def run(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        process = guestctl(*words)
        out, err = process.communicate(given, timeout=30)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    return run


def test_ls_shows_regions_and_channels(run: Run, region: shm.Region) -> None:
    done = run("ls")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"link" in done.stdout
    shown = json.loads(run("-j", "ls").stdout)
    assert shown["regions"] == [
        {"name": "link", "device": "0000:00:05.0", "access": "rw", "peer": 1, "size": region.size}
    ]
    assert [(c["name"], c["kind"], c["role"], c["lane"], c["lanes"]) for c in shown["channels"]] == [
        ("there", "spsc", "receive", 0, 1),
        ("back", "spsc", "send", 0, 1),
        ("news", "broadcast", "receive", 0, 1),
        ("many", "mpsc", "send", 2, 3),
    ]


def test_lines_become_messages(run: Run, region: shm.Region, fake: FakeGuest, tmp_path: Path) -> None:
    with region.receiver("back") as back:
        assert run("send", "back", given=b"one\n\nthree").returncode == 0
        assert [back.recv(timeout=5) for _ in range(3)] == [b"one", b"", b"three"]
        with pytest.raises(shm.ChannelClosed):
            back.recv(timeout=5)
        (tmp_path / "file").write_bytes(bytes(range(250)))
        assert run("-r", "send", "back", str(tmp_path / "file")).returncode == 0
        assert [len(back.recv(timeout=5)) for _ in range(3)] == [100, 100, 50]
    assert fake.doorbell() == region.channels["back"].data_bell  # the end of the channel rings


def test_messages_become_lines(run: Run, region: shm.Region) -> None:
    with region.sender("there") as there:
        for message in (b"one", b"", b"three"):
            there.send(message)
    assert run("recv", "there").stdout == b"one\n\nthree\n"
    region.mark_fresh("there", role="receive")
    with region.sender("there") as there:
        there.send(b"raw")
        there.send(b"and counted")
        done = run("-r", "-n", "1", "recv", "there")
        assert (done.returncode, done.stdout) == (0, b"raw")
        assert run("-n", "1", "recv", "there").stdout == b"and counted\n"


def test_a_peer_that_died_and_a_limit_that_passed_are_results(run: Run, region: shm.Region) -> None:
    with region.sender("there"):
        region.mark_gone("there", role="send")
        done = run("recv", "there")
        assert (done.returncode, done.stderr) == (3, b"guestctl: channel there: its other end died\n")
    done = run("-t", "0.01", "recv", "news")
    assert (done.returncode, done.stderr) == (1, b"guestctl: channel news: the time limit passed\n")


def test_a_lane_is_the_guests_own(run: Run, region: shm.Region) -> None:
    with region.receiver("many") as many:
        assert run("send", "many", given=b"x").returncode == 0
        assert (many.recv(timeout=5), many.sender_lane) == (b"x", 2)
        done = run("-l", "0", "send", "many", given=b"x")
        assert b"this guest may not send" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), 2, b"guestctl ls"),
        (("eat",), 2, b"guestctl ls"),
        (("-Z", "ls"), 2, b"guestctl ls"),
        (("recv", "nothing"), 1, b"channel nothing is none of this guest's"),
        (("recv", "back"), 1, b"this guest may not receive"),
        (("send", "back", "/nonexistent"), 1, b"/nonexistent: cannot be opened: No such file or directory"),
        (("-s", "0", "bench", "back", "there"), 2, b"0 bytes"),
    ],
)
def test_what_is_wrong_is_one_sentence(run: Run, words: tuple[str, ...], code: int, text: bytes) -> None:
    done = run(*words)
    assert done.returncode == code
    assert text in done.stderr


def test_a_message_that_is_too_long_is_told(run: Run) -> None:
    done = run("send", "back", given=bytes(101).replace(b"\0", b"x"))
    assert done.returncode == 1
    assert b"longer than max_message, 100 bytes" in done.stderr


def test_an_end_that_another_process_has_is_told(
    guestctl: Callable[..., subprocess.Popen[bytes]], run: Run, region: shm.Region, until: Callable[..., None]
) -> None:
    first = guestctl("recv", "there")
    until(lambda: region.state("there", role="receive") == "attached")
    assert b"another process of this guest may receive already" in run("recv", "there").stderr
    region.sender("there").close()
    assert first.communicate(timeout=20) == (b"", b"")
    assert first.returncode == 0


def test_bench_measures_against_its_other_side(run: Run, region: shm.Region) -> None:
    """The other side here answers as `guestctl bench -a` does: all but what says that it needs no answer."""

    def answer() -> None:
        with region.receiver("back") as back, region.sender("there") as there:
            back.spin_ns = shm.SPIN_ALWAYS  # Nobody turns doorbells into bells here.
            try:
                while True:
                    message = back.recv(timeout=20)
                    if message[0] == 0:
                        there.send(message, timeout=20)
            except shm.ChannelClosed:
                pass

    thread = threading.Thread(target=answer)
    thread.start()
    done = run("-n", "50", "-s", "64", "bench", "back", "there")
    thread.join()
    assert (done.returncode, done.stderr) == (0, b"")
    found = json.loads(done.stdout)
    times = list(found["round_trip_ns"].values())[:6]
    assert times == sorted(times)
    assert times[0] > 0
    assert (found["size"], found["rounds"], found["one_way"]["messages"]) == (64, 50, 50)


def test_bench_answers(guestctl: Callable[..., subprocess.Popen[bytes]], region: shm.Region) -> None:
    process = guestctl("-a", "bench", "there", "back")
    with region.sender("there") as there, region.receiver("back") as back:
        there.send(b"\1swallowed")
        there.send(b"\0answered")
        assert back.recv(timeout=20) == b"\0answered"
    assert process.communicate(timeout=20) == (b"", b"")
    assert process.returncode == 0


def test_what_is_spoiled_is_told(run: Run, fake: FakeGuest) -> None:
    (fake.run / "channels").write_text("there link receive zero\n")
    assert b"a line is not CHANNEL REGION" in run("recv", "there").stderr
    (fake.run / "regions").write_text("link\n")
    assert b"a line is not REGION" in run("ls").stderr
