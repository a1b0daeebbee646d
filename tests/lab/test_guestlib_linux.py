"""guestlib in Linux guests: many messages, doorbells and polling, a peer that is killed, all kinds on one channel."""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hostd import Host
from hostd.host import BackgroundCluster, Completed

pytestmark = [
    pytest.mark.timeout(3000 if os.environ.get("HOSTD_LONG") else 900),
    pytest.mark.skipif("HOSTD_LAB" not in os.environ, reason="needs a KVM that runs Linux guests: the lab"),
]

PROGRAMS = Path(__file__).resolve().parent / "programs"
COUNT = 1_000_000 if os.environ.get("HOSTD_LONG") else 10_000
FEW = 300
LINUX = """
[guest.{name}]
kernel = "debian-cloud"
root = "debian"
memory = "160MiB"
files = {{ "/root/send.py" = "{programs}/stream_send.py", "/root/receive.py" = "{programs}/stream_receive.py", \
"/root/inbox.py" = "{programs}/inbox.py", "/root/news.py" = "{programs}/news.py" }}
channels = {{ {channels} }}
"""
CLUSTER = """
[region.link]
[channel.sleeping]
region = "link"
[channel.polling]
region = "link"
[channel.dying]
region = "link"
[channel.there]
region = "link"
[channel.back]
region = "link"
[channel.inbox]
region = "link"
kind = "mpsc"
lanes = 3
[channel.news]
region = "link"
kind = "broadcast"

[guest.party]
program = "{programs}/party.c"
args = ["{few}"]
memory = "4MiB"
channels = {{ inbox = "send", news = "receive" }}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundCluster]:
    """Two Linux guests that serve their agents, and a unikernel guest."""
    folder = tmp_path_factory.mktemp("guestlib")
    left = 'sleeping = "send", polling = "send", dying = "send", there = "send", back = "receive", inbox = "send"'
    right = (
        'sleeping = "receive", polling = "receive", dying = "receive", there = "receive", back = "send", '
        'inbox = "receive", news = "send"'
    )
    file = folder / "guestlib.toml"
    text = CLUSTER.format(programs=PROGRAMS, few=FEW)
    for name, channels in (("left", left), ("right", right)):
        text += LINUX.format(name=name, channels=channels, programs=PROGRAMS)
    file.write_text(text)
    # Not a folder of pytest's: a Unix socket's path has at most 107 bytes.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ht") as runtime:
        patch.setenv("HOSTD_RUNTIME_DIR", runtime)
        with Host() as host:
            cluster = host.up(file)
            try:
                yield cluster
            finally:
                cluster.down()


@pytest.fixture
def start(cluster: BackgroundCluster) -> Iterator[Any]:
    """Run a command in a guest, in the background; its result is the future's."""
    with ThreadPoolExecutor(4) as pool:

        def begin(guest: str, *argv: str) -> Future[Completed]:
            return pool.submit(cluster.guests[guest].exec, *argv, wait=120)

        yield begin


def good(done: Completed) -> list[str]:
    """Return the words that a command wrote last; it must have ended well."""
    assert done.exit_code == 0, done.stderr.decode() + done.stdout.decode()
    return done.stdout.decode().splitlines()[-1].split()


@pytest.mark.parametrize("mode", ["sleeping", "polling"])
def test_messages_arrive_once_in_order_and_whole(start: Any, mode: str) -> None:
    receiver = start("right", "python3", "/root/receive.py", mode, mode)
    sender = start("left", "python3", "/root/send.py", mode, str(COUNT), mode)
    sleeps, rings, _ = map(int, good(sender.result()))
    end, count, _, receiver_sleeps, receiver_rings, _ = good(receiver.result())
    assert (end, int(count)) == ("closed", COUNT)
    if mode == "sleeping":
        assert sleeps + int(receiver_sleeps) > 0
        assert rings + int(receiver_rings) > 0
    else:
        assert rings == int(receiver_rings) == 0


def test_guestctl_measures_between_two_guests(start: Any) -> None:
    answering = start("right", "/run/hostd/guestctl", "-t", "60", "-a", "bench", "there", "back")
    asked = start("left", "/run/hostd/guestctl", "-t", "60", "-S", "0", "-n", "100", "bench", "there", "back").result()
    assert asked.exit_code == 0, asked.stderr
    assert b'"rounds": 100' in asked.stdout
    assert answering.result().exit_code == 0
    listed = start("left", "/run/hostd/guestctl", "ls").result().stdout.decode()
    assert "channel there" in listed


def test_the_region_is_mapped_cached_where_the_guests_type_counts(start: Any) -> None:
    """The kernel lists who maps what: BAR2 must be write-back there, on processors that heed it, as the lab's does."""
    program = (
        "import guestlib, pathlib, subprocess\n"
        "subprocess.run(['mount', '-t', 'debugfs', 'none', '/sys/kernel/debug'], check=False)\n"
        "region = guestlib.attach().region('link')\n"
        "start = (region.device.folder / 'resource').read_text().splitlines()[2].split()[0]\n"
        "listed = pathlib.Path('/sys/kernel/debug/x86/pat_memtype_list').read_text()\n"
        "print([l.split()[-1] for l in listed.splitlines() if f'{int(start, 16):x}-' in l.replace('0x', '')])\n"
        "print('AuthenticAMD' in pathlib.Path('/proc/cpuinfo').read_text())\n"
    )
    done = start("left", "python3", "-c", program).result()
    *_, types, heeds = done.stdout.decode().splitlines()
    assert done.exit_code == 0, done.stderr
    assert "write-back" in types or heeds == "False", done.stdout


def test_linux_guests_a_unikernel_and_a_host_process_share_a_channel(cluster: BackgroundCluster, start: Any) -> None:
    collector = start("right", "python3", "/root/inbox.py", "inbox", str(FEW))
    linux = start(
        "left",
        "python3",
        "-c",
        "import guestlib, struct\n"
        "with guestlib.attach().sender('inbox') as inbox:\n"
        f"    for n in range({FEW}): inbox.send(struct.pack('<Q8s', n, b'linux'), timeout=60)\n",
    )
    with cluster.region("link") as region:
        heard: list[int] = []

        def listen() -> None:
            with region.receiver("news") as news:
                while not heard or heard[-1] != FEW - 1:
                    heard.append(int.from_bytes(news.recv(timeout=120), "little"))

        listener = threading.Thread(target=listen)
        listener.start()
        with region.sender("inbox") as inbox:
            for number in range(FEW):
                inbox.send(struct.pack("<Q8s", number, b"host"), timeout=60)
        assert linux.result().exit_code == 0, linux.result().stderr
        assert good(collector.result())[:3] == ["['host',", "'linux',", "'uni']"]
        assert start("right", "python3", "/root/news.py", "news", str(FEW)).result().exit_code == 0
        listener.join(120)
    assert heard[-1] == FEW - 1
    assert heard == sorted(heard)
    result = cluster.wait("party", timeout=120).guests["party"]
    assert (result.exit_code, result.reports["heard"]) == (0, FEW - 1)


def test_zz_a_guest_that_is_killed_in_the_middle_is_noticed(cluster: BackgroundCluster, start: Any) -> None:
    """Last, as one guest is gone then. The sender sends 50 times a second; what counts is from its last message on."""
    receiver = start("right", "python3", "/root/receive.py", "dying", "sleeping")
    sender = start("left", "python3", "/root/send.py", "dying", "1000000", "sleeping", "0.02")
    with cluster.region("link", readonly=True) as region:
        done = threading.Event()
        while region.state("dying", role="send") != "attached":
            assert not done.wait(0.1)
            assert not sender.done(), sender.result()
        done.wait(3)
    cluster.guests["left"].kill()
    end, count, passed, *_ = good(receiver.result())
    print(f"noticed {passed} ms after the last message")
    assert (end, int(count) > 0) == ("gone", True)
    assert int(passed) < 1000
    assert sender.exception() is not None  # Its command went with it.
