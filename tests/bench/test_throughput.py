"""Throughput, in tiny rounds: what is reported and checked, and that nothing is left; never how fast."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hostd.bench import BenchError, stream_guests, throughput
from hostd.bench.stream import python_end
from hostd.bench.stream_baselines import KINDS, Pairs

CPUS = sorted(os.sched_getaffinity(0))


def options(*arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    throughput.configure(parser)
    return parser.parse_args(arguments)


def leftovers():
    return [entry for entry in os.listdir("/dev/shm") if f"bench-throughput-{os.getpid()}" in entry]


@pytest.mark.parametrize("name", KINDS)
def test_each_pair_sends_messages_of_any_size(name):
    with Pairs(CPUS) as pairs:
        assert pairs.missing(KINDS[name]) is None
        # More than one read can take: the first's messages are not timed.
        for size, count in ((8, 60000), (64, 10000), (4096, 300), (65536, 40)):
            assert pairs.get(name).rate(size, count) > 0


def test_pairs_leave_nothing():
    with Pairs(CPUS) as pairs:
        for name in ("iceoryx2", "zeromq_ipc", "python_channel", "host_ring"):
            pairs.get(name).rate(64, 100)
        folder = pairs._folder
        assert folder.exists()
    assert not folder.exists()
    assert not [entry for entry in os.listdir("/dev/shm") if f"bench-{os.getpid()}" in entry]


def test_an_end_that_dies_is_a_sentence():
    with Pairs(CPUS) as pairs:
        pair = pairs.get("python_channel")
        pair.rate(64, 100)
        pair._sender.kill()
        with pytest.raises(BenchError, match="python_channel: "):
            pair.rate(64, 100)


def test_a_job_that_cannot_be_is_a_sentence():
    with Pairs(CPUS) as pairs, pytest.raises(BenchError, match="no job that can be done"):
        pairs.get("host_ring").rate(4, 100)


def test_a_wrong_message_is_found():
    made = python_end.messages(64)
    coming = iter([made[0], made[2]])
    with pytest.raises(python_end.WrongMessageError, match="number 1 was due"):
        python_end.one_by_one(lambda: next(coming), made, 2)
    long = python_end.messages(65536)
    with pytest.raises(python_end.WrongMessageError):
        python_end.check(long[1], long[0])


@pytest.mark.parametrize("guests", [2, 3, 5])
def test_guests_send_in_every_way(guests):
    with stream_guests.Guests(guests, CPUS) as cluster:
        ways = [getattr(stream_guests, name) for name in ("SPSC", "SLEEPING", "IN_PLACE", "MANY", "BROADCAST")]
        for traffic in [*ways, *stream_guests.TOPOLOGIES.values()]:
            assert cluster.rate(traffic, 64, 300) > 0
        for traffic in ways:
            assert cluster.rate(traffic, 1 << 20, 4) > 0
        assert leftovers()
    assert not leftovers()


def test_a_guest_that_ends_is_a_sentence():
    with stream_guests.Guests(2, CPUS) as cluster, pytest.raises(BenchError, match="no job that can be done"):
        cluster.rate(stream_guests.SPSC, 4, 100)


def test_the_report(monkeypatch):
    monkeypatch.setattr(
        throughput, "KINDS", {name: KINDS[name] for name in ("host_ring", "host_in_place", "memcpy", "python_batches")}
    )
    told = []
    arguments = options("--sizes", "64,1MiB", "--seconds", "0.002", "--guests", "3", "--topology", "ring")
    report = throughput.measure(arguments, told.append)
    names = [figure.name for figure in report.figures]
    assert {"guests_spsc_64B", "guests_in_place_1MiB_ns", "host_ring_1MiB", "3_guests_ring_64B"} <= set(names)
    assert len(names) == len(set(names))
    assert all(len(figure.rounds) == 2 for figure in report.figures)
    assert report.figure("guests_spsc_64B").unit == "messages/s"
    assert report.figure("guests_spsc_1MiB").unit == "bytes/s"
    assert report.figure("host_ring_64B").baseline
    ratios = {ratio.name: ratio for ratio in report.ratios}
    assert ratios["guests_spsc_64B/host_ring_64B"].target == 0.95
    assert ratios["guests_in_place_1MiB_ns/guests_in_place_64B_ns"].at_most
    assert not ratios["python_batches_64B/1e6"].at_most
    lines = {(series.chart, series.line) for series in report.series}
    assert ("message rate by size", "guests_spsc") in lines
    assert any(line.startswith("round 2 of 2") for line in told)


def test_the_cluster_file_is_one():
    """What the report says was run can be read as a cluster file."""
    from hostd.cluster.file import load

    path = Path("throughput.toml").resolve()
    text = stream_guests.as_toml(stream_guests.tables(3, CPUS))
    try:
        path.write_text(text)
        assert len(load(path).guests) == 3
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--sizes", "4"), "4 bytes; messages have 8 bytes to 1MiB"),
        (("--sizes", "many"), "is no size"),
        (("--topology", "torus"), "'torus' is no topology; there are pairs, ring, star, all-to-all"),
        (("--guests", "1"), "1 guests; 2 to 64 are possible"),
        (("--seconds", "0"), "0 s; 0.001 to 60 are possible"),
    ],
)
def test_what_cannot_be_asked_for(arguments, sentence, capsys):
    with pytest.raises(SystemExit):
        options(*arguments)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_leaves_nothing(number):
    command = [sys.executable, "-m", "hostd.cli", "bench", "throughput", "--sizes", "64", "--seconds", "0.01"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "warm-up" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode not in (0, None)
    assert "Traceback" not in said
    places = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    assert not [entry for place in places for entry in place.iterdir() if f"-{process.pid}" in entry.name]


def test_what_a_killed_run_left_is_swept():
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [Path("/dev/shm", f"hostd-bench-{gone.pid}-x"), Path(tempfile.gettempdir(), f"hostd-bench-{gone.pid}-y")]
    left[0].touch()
    left[1].mkdir()
    with Pairs(CPUS):
        assert not any(path.exists() for path in left)
