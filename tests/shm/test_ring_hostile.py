"""A peer that writes whatever it likes: errors that name the field, and nothing worse."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shm

Make = Callable[..., shm.Region]
SOURCE = Path(__file__).parent / "fuzz" / "ring_fuzz.c"
INCLUDE = Path(shm.__file__).parent / "include"
LONG = bool(os.environ.get("HOSTD_LONG"))

SPECS = (
    shm.ChannelSpec("c", size=1024),
    shm.ChannelSpec("m", kind="mpsc", size=512, lanes=2),
    shm.ChannelSpec("b", kind="broadcast", size=1024),
    shm.ChannelSpec("all", kind="barrier", lanes=3),
)


def words(region: shm.Region, channel: str) -> memoryview:
    """Return a channel's memory as 8-byte words."""
    info = region.channels[channel]
    return memoryview(region._map)[info.offset : info.offset + info.span].cast("Q")


def test_an_impossible_length(make: Make) -> None:
    region = make(SPECS[0])
    receiver, sender = region.receiver("c"), region.sender("c")
    sender.send(b"x")
    words(region, "c")[64] = 1 | 5000 << 32
    for _ in range(2):
        with pytest.raises(shm.RingError, match=r"channel .*/c: a peer spoiled its field length") as caught:
            receiver.recv(timeout=5)
    assert (caught.value.field, caught.value.lane) == ("length", None)


def test_an_impossible_head(make: Make) -> None:
    region = make(SPECS[0])
    sender = region.sender("c")
    words(region, "c")[0] = 12345
    with pytest.raises(shm.RingError, match="field head"):
        sender.send_many([b"x"] * 100, timeout=5)


def test_an_impossible_tail(make: Make) -> None:
    region = make(SPECS[0])
    words(region, "c")[8] = 1 << 63
    with pytest.raises(shm.RingError, match="field tail"):
        region.sender("c")


def test_a_spoiled_lane_is_that_lane_s_only(make: Make) -> None:
    region = make(SPECS[1])
    receiver, good, bad = region.receiver("m"), region.sender("m"), region.sender("m")
    bad.send(b"x")
    info = region.channels["m"]
    lane = (256 + (512 + 512)) // 8 + 64
    assert words(region, "m")[lane] == 1 | 1 << 32
    words(region, "m")[lane] = 1 | 0xFFFFFFF0 << 32
    good.send(b"one")
    assert receiver.recv(timeout=5) == b"one"
    with pytest.raises(shm.RingError, match="lane 1: a peer spoiled its field length") as caught:
        receiver.recv(timeout=5)
    assert caught.value.lane == 1
    good.send(b"two")
    assert receiver.recv(timeout=5) == b"two"
    with pytest.raises(shm.ChannelTimeout):
        receiver.recv(timeout=0.01)
    good.close()
    with pytest.raises(shm.PeerGone):
        receiver.recv(timeout=5)
    assert info.lanes == 2


def test_an_impossible_claim(make: Make) -> None:
    region = make(SPECS[2])
    receiver = region.receiver("b")
    words(region, "b")[0] = 1 << 60
    with pytest.raises(shm.RingError, match="field claim"):
        receiver.recv(timeout=5)


def test_a_writer_that_laps_for_ever_costs_no_more_than_the_time_limit(make: Make) -> None:
    region = make(SPECS[2])
    receiver = region.receiver("b")
    words(region, "b")[0] = 20  # Always a little ahead; nothing is ever there.
    with pytest.raises(shm.ChannelTimeout):
        receiver.recv(timeout=0.05)


VALUES = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]),
    # A header that may be believed: a small sequence, any length.
    st.builds(lambda sequence, length: sequence | length << 32, st.integers(0, 40), st.integers(0, 2**32 - 1)),
)


@settings(
    max_examples=2000 if LONG else 200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    channel=st.sampled_from(["c", "m", "b", "all"]),
    steps=st.lists(
        st.one_of(st.tuples(st.integers(0, 300), VALUES), st.sampled_from(["use", "send", "new"])), max_size=30
    ),
)
def test_nothing_worse_than_an_error(name: str, channel: str, steps: list[object]) -> None:
    with shm.Region.create(name, channels=SPECS, serve=False) as region:
        memory = words(region, channel)
        others = {spec.name: bytes(words(region, spec.name)) for spec in SPECS if spec.name != channel}
        barrier = channel == "all"
        end = region.barrier(channel) if barrier else region.receiver(channel)
        sender = None if barrier else region.sender(channel)
        for step in steps:
            try:
                if isinstance(step, tuple):
                    memory[step[0] % len(memory)] = step[1]
                elif isinstance(end, shm.Barrier):
                    end.wait(timeout=0)
                elif step == "use":
                    assert len(end.recv(timeout=0)) <= end.info.max_message
                elif step == "send":
                    assert sender is not None
                    if sender.closed:
                        sender = region.sender(channel)
                    sender.send(b"x" * 100, timeout=0)
                elif sender is not None:
                    sender.close()
            except shm.ShmError:
                pass
        memory.release()
        for other, content in others.items():
            assert bytes(words(region, other)) == content


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("fuzz") / "ring_fuzz"
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}", str(SOURCE), "-o", str(target), "-lpthread"]
    subprocess.run(command, check=True, timeout=120)
    return target


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("race", [False, True])
def test_fuzz_under_address_sanitizer(fuzzer: Path, seed: int, race: bool) -> None:
    """Every case spoils a channel's memory while its ends are used; the memory is exactly as large as it must be."""
    cases = (1_000 if race else 100_000) * (10 if LONG else 1)
    command = [str(fuzzer), str(seed), str(cases), *(["race"] if race else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    ran, received, refused = (int(word) for word in done.stdout.replace(",", "").split() if word.isdigit())
    assert ran == cases
    assert received > cases / 10
    assert refused > cases


def test_headers_are_clean_and_freestanding(tmp_path: Path) -> None:
    """Every header alone, without a C library, as a unikernel uses it."""
    for header in sorted((INCLUDE / "shm").glob("*.h")):
        source = tmp_path / f"{header.stem}.c"
        source.write_text(f"#include <shm/{header.name}>\n")
        command = ["gcc", "-std=c11", "-ffreestanding", "-nostdinc", "-O2", "-Wall", "-Wextra", "-Werror"]
        builtin = subprocess.run(
            ["gcc", "-print-file-name=include"], capture_output=True, text=True, check=True
        ).stdout.strip()
        command += [f"-I{INCLUDE}", "-isystem", builtin, "-c", str(source), "-o", os.devnull]
        subprocess.run(command, check=True, timeout=60)
