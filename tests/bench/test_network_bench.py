"""The network benchmark: frames are counted by who forwards as well, what is lost is told, nothing is left behind."""

from __future__ import annotations

import argparse
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hostd.bench import BenchError, network, network_testpmd
from hostd.bench.network_rounds import Round, Rounds, take
from hostd.bench.network_switch import MACS, Switch
from hostd.bench.network_traffic import Traffic
from net import naming

HUGE_PAGES = network_testpmd.HUGE_PAGES
needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="who spins needs a processor, and so do others")


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Their number is one for the whole host, and other tests change it, too."""
    with (Path(tempfile.gettempdir()) / f"hostd-tests-hugepages-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def cpus() -> tuple[int, int]:
    there = sorted(os.sched_getaffinity(0))
    return there[-1], there[0]


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    network.configure(parser)
    return parser.parse_args(arguments)


def left_over(before: set[int]) -> list[psutil.Process]:
    """This process's children that were not there before; who was killed by another's end may take a moment."""
    children = [one for one in psutil.Process().children(recursive=True) if one.pid not in before]
    _, alive = psutil.wait_procs(children, timeout=5)
    return alive


@needs_two
@pytest.mark.timeout(300)
def test_one_short_round(huge_pages: None) -> None:
    before = {one.pid for one in psutil.Process().children(recursive=True)}
    pages = HUGE_PAGES.read_text()
    told: list[str] = []
    report = network.measure(options("--seconds", "0.05", "--messages", "1000"), told.append)
    figures = {figure.name: figure for figure in report.figures}
    expected = {"copy", "vhost", "ring", "ring_capture"} | ({"testpmd"} if network_testpmd.missing() is None else set())
    for name in expected:
        assert figures[name].rounds[0] > 0
        assert figures[f"{name}_cpu"].rounds[0] > 0
    ratios = {ratio.name: ratio for ratio in report.ratios}
    assert ratios["ring/vhost"].target == 2.0
    assert ratios["time of a frame, capture/none"].target == 1.2
    latencies = figures.get("cross_latency")
    if latencies is None:
        assert any("Latencies are left out" in note for note in report.notes)
    else:
        assert figures["cross_bare_latency"].rounds[0] > 0
        assert latencies.rounds[0] > figures["cross_bare_latency"].rounds[0] / 2
    assert {series.line for series in report.series} == expected - {"ring_capture"}
    assert any(line.startswith("round 1") for line in told)
    assert not left_over(before)
    assert HUGE_PAGES.read_text() == pages
    assert not naming.folder(f"bench-{os.getpid()}", "lan").parent.exists()


@needs_two
@pytest.mark.parametrize("kind", ["vhost", "ring"])
def test_frames_are_counted_by_the_switch_too(kind: str, cpus: tuple[int, int]) -> None:
    forwarder, clients = cpus
    with Switch(forwarder, network=kind) as switch:
        if kind == "vhost":
            paths = [switch.vhost(name, mac) for name, mac in zip("ab", MACS, strict=True)]
            traffic = Traffic.by_queues(paths)
        else:
            traffic = Traffic.by_rings([switch.ring(name, mac) for name, mac in zip("ab", MACS, strict=True)])
        with traffic:
            passed = [traffic.run(clients, switch.pid, size, 0.02) for size in (64, 1514)]
            sent = traffic.sent
        ports = {port["name"]: port["counters"] for port in switch.show()["ports"]}
    assert ports["a"]["frames_in"] == ports["b"]["frames_out"] == sent > sum(one.frames for one in passed) > 0
    assert not any(ports["b"]["drops"].values())


@needs_two
def test_a_frame_that_is_lost_is_told(cpus: tuple[int, int]) -> None:
    forwarder, clients = cpus
    with Switch(forwarder, network="lossy") as switch:
        regions = [switch.ring("a", MACS[0], rate=100_000), switch.ring("b", MACS[1])]
        with Traffic.by_rings(regions) as traffic:
            with pytest.raises(BenchError, match=r"[1-9]\d* of \d+ frames did not come"):
                traffic.run(clients, switch.pid, 1514, 0.02)


@needs_two
def test_who_forwards_and_has_ended_is_told(cpus: tuple[int, int]) -> None:
    forwarder, clients = cpus
    with Switch(forwarder, network="ended") as switch:
        regions = [switch.ring(name, mac) for name, mac in zip("ab", MACS, strict=True)]
        with Traffic.by_rings(regions) as traffic, pytest.raises(BenchError, match="it has ended"):
            traffic.run(clients, 2**22 + 1, 64, 0.02)  # No process can have that number.


def rounds_of(*sensors: list[float]) -> Rounds:
    """The rounds that are taken of a machine whose copies have these rates."""
    rounds = (Round({"number": number}, rates) for number, rates in enumerate(sensors))
    return take(lambda: next(rounds), 2, lambda _: None)


def test_rounds_at_one_distance_are_kept() -> None:
    near, far, moved = [100.0, 99.0, 101.0, 100.0], [30.0, 31.0, 30.0, 29.0], [100.0, 100.0, 30.0, 30.0]
    found = rounds_of(near, far, near, moved, [90.0, 100.0, 95.0, 94.0])
    assert [one.figures["number"] for one in found.kept] == [2, 4]
    assert [one.figures["number"] for one in found.others] == [1]
    assert found.unsteady == 1
    assert found.figures() == {"number": [2, 4]}


def test_where_no_round_is_steady_all_count() -> None:
    moved = [100.0, 100.0, 30.0, 30.0]
    found = rounds_of(*[moved] * 7)
    assert len(found.kept) == 6
    assert not found.others


def test_a_piece_that_was_disturbed_spoils_no_round() -> None:
    assert Round({}, [100.0, 10.0, 100.0, 99.0]).steady


def test_a_missing_testpmd_is_a_sentence_with_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    why = network_testpmd.missing()
    assert why is not None
    assert "dpdk-testpmd is missing; install it: apt-get install" in why
    assert "dpdk-dev" in why


def test_a_testpmd_that_does_not_come_up_is_a_sentence_with_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "dpdk-testpmd"
    program.write_text("#!/bin/sh\necho no such device\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(BenchError, match="dpdk-testpmd ended at once: no such device"):
        network_testpmd.Testpmd(0, huge=False)
    assert os.listdir(tmp_path) == ["dpdk-testpmd"]


@needs_two
@pytest.mark.parametrize(
    ("cpus", "sentence"),
    [("4000,0", "there is no processor 4000 here"), ("0,0", "need a processor each")],
)
def test_processors_that_can_not_be(cpus: str, sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        network.measure(options("--cpus", cpus), print)


@pytest.mark.parametrize("arguments", [("--cpus", "1"), ("--size", "31"), ("--size", "1515"), ("--seconds", "0")])
def test_options_that_can_not_be(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(*arguments)
    assert arguments[0] in capsys.readouterr().err
