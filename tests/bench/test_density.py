"""A sweep of few guests: what its report has, where it stops, and that nothing of it stays."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest

from hostd.bench import BenchError, density, density_ksm
from hostd.bench.density_memory import cpu_ns, image_rows, meminfo, shared_pages
from hostd.bench.report import Report

LIMIT = 60.0


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A runtime and a temporary folder of the test's own; it fails if a process that knows them is left."""
    # A Unix socket's path has at most 107 bytes.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hs"))
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    deadline = time.monotonic() + 10
    while left(folder, tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    found = left(folder, tmp_path)
    shutil.rmtree(folder)
    assert found == []


def left(folder: pathlib.Path, temporary: pathlib.Path) -> list[str]:
    mark = f"HOSTD_RUNTIME_DIR={folder}".encode()
    found = [str(path) for path in temporary.glob("hostd-density-*")]
    if (folder / "clusters").exists():
        found += [str(path) for path in (folder / "clusters").iterdir()]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(pid) != os.getpid() and mark in pathlib.Path("/proc", pid, "environ").read_bytes().split(b"\0"):
                found.append(f"process {pid}")
        except OSError:
            continue
    return found


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    density.configure(parser)
    return parser.parse_args(["--idle", "0.1", "--image-size", "64KiB", "--write", "4", *arguments])


def measure(*arguments: str) -> Report:
    return density.measure(options(*arguments), lambda _: None)


def test_a_sweep_has_all_measures_at_each_step(home: pathlib.Path) -> None:
    report = measure("--guests", "2,6", "--modes", "shared,copied", "--image-size", "4MiB")
    names = {figure.name for figure in report.figures}
    wanted = ("available", "pss", "pss_more", "rate", "idle", "messages", "end")
    for mode in ("shared", "copied"):
        assert {f"{mode}_{name}" for name in wanted} <= names
        assert report.figure(f"{mode}_pss").median > 0
    lines = {(one.chart, one.line): one for one in report.series}
    assert lines["memory of all guests", "shared, pss"].x == (2, 6)
    assert lines["marginal cost per guest", "copied, pss"].x == (6,)
    assert any("targets are for 1,000" in note for note in report.notes)
    # A guest with a copy of the image takes the image more.
    assert report.figure("copied_pss_more").median - report.figure("shared_pss_more").median > 3 << 20
    shares = {one.line: one.y for one in report.series if one.chart == "pages of the image still shared"}
    assert len(shares["shared"]) == len(shares["copied"]) > 1024
    assert set(shares["copied"]) == {0.0}
    # The four pages of its table that each writes, and the program's own data, in pages of their own.
    assert 4 <= list(shares["shared"]).count(0.0) <= 8
    assert set(shares["shared"]) == {0.0, 1.0}


@pytest.mark.skipif(density_ksm.missing() is not None, reason="no KSM here")
def test_ksm_merges_copies_and_is_put_back(home: pathlib.Path) -> None:
    settings = [density_ksm.FOLDER / name for name in density_ksm.EAGER]
    before = [path.read_text() for path in settings]
    report = measure("--guests", "3", "--modes", "ksm")
    shares = next(one.y for one in report.series if one.chart == "pages of the image still shared")
    assert list(shares).count(1.0) > 8
    assert [path.read_text() for path in settings] == before


def test_the_floor_of_memory_ends_a_sweep(home: pathlib.Path) -> None:
    leave = meminfo()["MemAvailable"] - (12 << 20)
    report = measure("--guests", "1,500", "--modes", "shared", "--leave", str(leave))
    assert any("limit met: memory" in note and "--leave" in note for note in report.notes)


def test_the_time_limit_ends_a_sweep(home: pathlib.Path) -> None:
    report = measure("--guests", "2", "--modes", "shared", "--time-limit", "0.001")
    assert report.figures == []
    assert any("the time limit" in note for note in report.notes)


def test_descriptors_end_a_sweep_before_it_begins(home: pathlib.Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (386, 386))\n"
        "from hostd.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["density", "--guests", "1,50", "--modes", "shared", "--rounds", "1", "--idle", "0.1", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert any("RLIMIT_NOFILE" in note and "ulimit -n" in note for note in found["notes"])
    assert any(one["x"][-1] == 2 for one in found["series"] if one["chart"] == "memory of all guests")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(home: pathlib.Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "hostd.cli", "density", "--guests", "2,4000", "--rounds", "1", "--idle", "0.1"]
    process = subprocess.Popen([*command, "--modes", "shared"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    clusters = pathlib.Path(os.environ["HOSTD_RUNTIME_DIR"], "clusters")
    deadline = time.monotonic() + LIMIT
    while not list(clusters.glob("*/guests/step1-9.sock")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 128 + number
    assert b"Traceback" not in said


def test_what_can_not_be_is_refused() -> None:
    for wrong in (["--guests", "3,2"], ["--guests", "0"], ["--modes", "shared,magic"]):
        with pytest.raises(SystemExit):
            options(*wrong)
    with pytest.raises(BenchError, match="--step 5: it must be from 1 to --most"):
        measure("--step", "5", "--most", "4")


def test_steps_end_at_the_most() -> None:
    assert density._steps(options("--step", "4", "--most", "10")) == [4, 8, 10]
    assert density._steps(options("--step", "5", "--most", "10")) == [5, 10]


def test_processor_time_is_that_of_all_threads() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before = cpu_ns([busy.pid])
        deadline = time.monotonic() + LIMIT
        while cpu_ns([busy.pid]) < before + 50_000_000:
            assert time.monotonic() < deadline
    finally:
        busy.kill()
        busy.wait()
    assert cpu_ns([busy.pid]) == 0


def test_rows_of_the_image() -> None:
    rows = [
        {"name": name, "hva": 4096, "size": 4096} for name in ("low", "image.0", "ram", "kernel.text", "image.2.bss")
    ]
    assert len(image_rows(rows)) == 3
    assert shared_pages([(1 << 22, [(4096, 4096)])]) == []
