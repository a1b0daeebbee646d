"""hostd bench latency: every way bounces and checks messages, the report has its parts, bad input is a sentence."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hostd.bench import BenchError, latency
from hostd.bench.latency_baselines import KINDS, Pairs, missing
from hostd.bench.latency_guests import BROADCAST, EXIT, PAIR, SPIN_ALWAYS, STAR, Guests, tables
from hostd.bench.report import Report
from hostd.bench.standing import as_toml
from hostd.cluster.file import load

CPUS = tuple(sorted(os.sched_getaffinity(0)))
TICKS_PER_NS = 2.5
"""near enough: nothing here asks for how long anything took"""


@pytest.fixture(scope="module")
def guests():
    with Guests(3, CPUS, TICKS_PER_NS) as made:
        yield made


@pytest.fixture(scope="module")
def pairs():
    with Pairs(CPUS, TICKS_PER_NS) as made:
        yield made


@pytest.mark.parametrize("spin_ns", [SPIN_ALWAYS, 0, 20_000])
@pytest.mark.parametrize("size", [8, 15, 64, 65536, 1 << 20])
def test_a_pair_of_guests_bounces_messages(guests, size, spin_ns):
    assert guests.bounce(PAIR, size, 12, spin_ns=spin_ns, warm_up=2).count == 12


@pytest.mark.parametrize("way", [STAR, BROADCAST])
def test_more_guests_bounce_messages(guests, way):
    found = guests.bounce(way, 64, 10, spin_ns=0, users=3, warm_up=2)
    assert found.count == (20 if way is STAR else 10)
    # One who had no part in a broadcast has a part in the next.
    assert guests.bounce(way, 100, 3000, spin_ns=SPIN_ALWAYS, users=2).count == 3000
    assert guests.bounce(way, 8, 10, spin_ns=0, users=3).count == (20 if way is STAR else 10)


@pytest.mark.parametrize("spin_ns", [SPIN_ALWAYS, 0])
def test_questions_by_the_clock_take_as_long_as_the_schedule(guests, spin_ns):
    assert guests.bounce(PAIR, 64, 20, spin_ns=spin_ns, interval_ns=200_000).count == 20
    # A rate that nobody can keep: each question waits for all before it, so no two times are the same.
    assert len(guests.bounce(PAIR, 65536, 200, spin_ns=spin_ns, interval_ns=1).counts) == 200


def test_a_guest_tells_what_an_exit_costs(guests):
    assert guests.bounce(EXIT, 8, 50, spin_ns=0, warm_up=5).count == 50


def test_many_samples_come_in_parts(guests):
    assert guests.bounce(PAIR, 8, 10_000, spin_ns=SPIN_ALWAYS).count == 10_000


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_baseline_bounces_messages(pairs, kind):
    if missing(kind):
        pytest.skip(str(missing(kind)))
    for size in (8, 64, kind.longest):
        assert pairs.get(kind.name).bounce(size, 10, warm_up=2).count == 10


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.by_clock])
def test_a_baseline_is_asked_by_the_clock(pairs, name):
    assert pairs.get(name).bounce(64, 20, interval_ns=100_000).count == 20
    assert pairs.get(name).bounce(64, 2000, interval_ns=1).count == 2000


def test_pairs_leave_nothing():
    with Pairs(CPUS, TICKS_PER_NS) as made:
        for name in ("python_channel", "iceoryx2", "host_ring"):
            if not missing(KINDS[name]):
                made.get(name).bounce(8, 5)
        processes = [process for pair in made._made.values() for process in (pair._asks, pair._answers)]
        folder = made._folder
    assert all(process.returncode == 0 for process in processes)
    assert not folder.exists()
    assert not [name for name in os.listdir("/dev/shm") if folder.name in name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_leaves_nothing(number):
    command = [sys.executable, "-m", "hostd.cli", "bench", "latency", "--rounds", "1000", "--sizes", "8"]
    run = subprocess.Popen([*command, "--clients", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in run.stderr:
        if "warm-up: python" in line:
            break
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode
    left = f"-{run.pid}-"
    assert not [name for folder in ("/dev/shm", "/tmp") for name in os.listdir(folder) if left in name]
    assert not [name for name in os.listdir("/dev/shm") if f"bench-latency-{run.pid}" in name]


def test_what_a_killed_run_left_goes_with_the_next(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [Path(tempfile.gettempdir(), f"hostd-bench-{gone.pid}-x"), Path(f"/dev/shm/hostd-bench-{gone.pid}-x_1.data")]
    left[0].mkdir()
    left[1].touch()
    ours = Path(f"/dev/shm/hostd-bench-{os.getpid()}-x_1.data")
    ours.touch()
    with Pairs(CPUS, TICKS_PER_NS):
        assert not [path for path in left if path.exists()]
        assert ours.exists()
    ours.unlink()


def test_a_process_that_died_is_a_sentence():
    with Pairs(CPUS, TICKS_PER_NS) as made:
        pair = made.get("unix_socket")
        pair._answers.kill()
        with pytest.raises(BenchError, match=r"^unix_socket: "):
            pair.bounce(64, 10)


def test_a_wrong_message_is_noticed(tmp_path):
    """The answer to a message must be that message: here half of the stream is somebody else's."""
    with Pairs(CPUS, TICKS_PER_NS) as made:
        made.get("pipe")
        program = made._folder / "bounce_host"
        (there_in, there_out), (back_in, back_out) = os.pipe(), os.pipe()
        command = [str(program), "ask", "bytes", str(CPUS[0]), str(there_out), str(back_in)]
        asks = subprocess.Popen(
            command,
            pass_fds=(there_out, back_in),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.write(back_out, (0).to_bytes(8, "little") + (7).to_bytes(8, "little"))
        said, error = asks.communicate(b"8 0 2 0\n", timeout=20)
        for fd in (there_in, there_out, back_in, back_out):
            os.close(fd)
    assert asks.returncode == 1
    assert not said
    assert error.decode() == "another message came where this was due: 1\n"


def test_the_report_has_figures_ratios_curves_and_a_cluster_that_runs(tmp_path):
    command = [sys.executable, "-m", "hostd.cli", "bench", "latency", "--rounds", "1", "--messages", "400"]
    done = subprocess.run(
        [*command, "--sizes", "8,4KiB", "--clients", "2", "--rate", "20000", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    report = Report.model_validate(json.loads(done.stdout))
    names = {figure.name for figure in report.figures}
    for row in ("guests_spin", "star_spin", "broadcast_spin", "guests_sleep", "star_sleep", "python_channel"):
        assert {row, f"{row}_p50", f"{row}_p99_9", f"{row}_max", f"{row}_corrected_p99"} <= names
    assert {"guests_spin_one_line", "guest_exit", "zeromq_ipc", "iceoryx2"} <= names
    assert sum("beside a line's way" in note or "eventfd + guest_exit is" in note for note in report.notes) == 2
    assert {"cache_line", "host_ring", "eventfd", "pipe", "unix_socket", "tcp_loopback"} <= names
    assert {"guests_spin_8_bytes", "guests_sleep_4096_bytes", "guests_spin_by_clock_p99"} <= names
    targets = {ratio.name: (ratio.target, ratio.at_most) for ratio in report.ratios if ratio.target}
    assert targets["guests_spin/cache_line"] == (1.25, True)
    assert targets["guests_sleep/eventfd"] == (1.5, True)
    assert all(figure.rounds[0] > 0 and figure.unit == "ns" for figure in report.figures)
    assert {series.chart for series in report.series} == {"round trips, percentiles", "round trips by size"}
    by_size = {series.line: series.x for series in report.series if series.chart == "round trips by size"}
    assert by_size["guests_spin"] == (8, 4096)
    assert "cache_line" not in by_size
    assert "warm-up: spinning" in done.stderr
    path = Path(tmp_path, "latency.toml")
    path.write_text(report.cluster_files["latency.toml"])
    assert list(load(path).guests) == ["g0", "g1", "g2"]


def test_the_cluster_file_says_what_the_tables_say(tmp_path):
    path = tmp_path / "latency.toml"
    path.write_text(as_toml(tables(5, (0, 1))))
    cluster = load(path)
    assert len(cluster.guests) == 5
    assert [list(guest.cpus) for guest in cluster.guests.values()] == [[0], [1], [1], [1], [1]]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--sizes", "4"], "4 is not possible; messages have 8 bytes to 1MiB"),
        (["--sizes", "8,2MiB"], "2MiB is not possible"),
        (["--sizes", "much"], "'much' is no size"),
        (["--wait", "dream"], "invalid choice: 'dream'"),
        (["--clients", "0"], "0 clients; 1 to 62 are possible"),
        (["--rate", "fast"], "'fast' is no whole number"),
        (["--cpus", "one"], "'one'; numbers are wanted, as 0,1"),
    ],
)
def test_bad_arguments_are_sentences(capsys, arguments, text):
    from hostd.cli.command import run_command

    with pytest.raises(SystemExit) as ended:
        run_command("bench", ["latency", *arguments])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cpus", "text"),
    [
        ((0, 4000), "there is no processor 4000 here"),
        ((0,), "two different ones are needed"),
        ((0, 0), "two different"),
    ],
)
def test_processors_that_will_not_do(cpus, text):
    with pytest.raises(BenchError, match=text):
        latency._choose(cpus)
