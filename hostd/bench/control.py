"""How long what a user asks for takes: a guest's start and end, a request to a supervisor, a command."""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hostd.bench import BenchError
from hostd.bench.control_cluster import ControlCluster
from hostd.bench.report import Figure, Report
from hostd.bench.rounds import Measurement, Tell, interleave
from hostd.control.framing import FrameReader, pack_frame

EXAMPLES = (
    "hostd bench control",
    "hostd bench control --guests 64 --rounds 10",
    "hostd bench control --html control.html --compare control-before.json",
)
FIRST, FURTHER, HELP = 0.025, 0.012, 3.0
"""targets: seconds to the first message of a guest, of each further one; `hostd --help` over `python -c pass`, times"""
MOST_GUESTS = 1000
QUIET = 0.3
"""seconds without a request before the first guest is asked for"""
STARTS, REQUESTS, COMMANDS = 5, 200, 9
"""in a round: times that all guests are started, requests, runs of each command; the round's figures are medians"""
COMMAND_LIMIT = 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add how many guests are asked for."""
    parser.add_argument("--guests", type=_guests, default=16, help="guests that are asked for (default: 16)")


def _guests(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if not 3 <= count <= MOST_GUESTS:
        raise argparse.ArgumentTypeError(f"{count} guests; 3 to {MOST_GUESTS} are possible")
    return count


def measure(options: argparse.Namespace, tell: Tell) -> Report:
    """Ask for guests, requests and commands in turn. Raises BenchError, and what `hostd run` says."""
    tell(f"bringing up a cluster of {options.guests} guests")
    with ControlCluster(options.guests) as cluster, _echo() as echo:
        measurements = [
            Measurement("guests start and stop", functools.partial(_guests_come_and_go, cluster)),
            Measurement("requests", functools.partial(_requests, cluster, echo)),
            Measurement("commands", functools.partial(_commands, cluster)),
            Measurement("a process forked and gone", _processes),
        ]
        found = interleave(measurements, options.rounds, tell)
        report = Report(bench="control", command="", machine={}, cluster_files={"control.toml": cluster.text})
    _write(report, found, options.guests)
    return report


# --- what is measured ---


def _guests_come_and_go(cluster: ControlCluster) -> Mapping[str, float]:
    """Several times: start one guest, a second one, all others together; stop one, then the rest."""
    first, second, *others = cluster.guests
    found: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    for _ in range(STARTS):
        time.sleep(QUIET)
        note("first_message", cluster.start([first])[0])
        note("second_message", cluster.start([second])[0])
        note("further_messages", cluster.start(others)[-1] / len(others))
        note("stop", cluster.stop([first]))
        note("stop_each", cluster.stop([second, *others]) / (len(others) + 1))
    return {name: statistics.median(values) for name, values in found.items()}


def _requests(cluster: ControlCluster, echo: Callable[[], object]) -> Mapping[str, float]:
    return {"request_ns": _median_ns(cluster.request), "echo_ns": _median_ns(echo)}


def _median_ns(ask: Callable[[], object]) -> float:
    times = []
    for _ in range(REQUESTS):
        begin = time.perf_counter_ns()
        ask()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times)


def _commands(cluster: ControlCluster) -> Mapping[str, float]:
    """Run each command several times, in turn."""
    hostd = _hostd()
    commands = {
        "python_pass": [sys.executable, "-c", "pass"],
        "hostd_help": [*hostd, "--help"],
        "hostd_ps": [*hostd, "ps", cluster.name],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(COMMANDS):
        for name, command in commands.items():
            times[name].append(_seconds(command))
    return {name: statistics.median(values) for name, values in times.items()}


def _hostd() -> list[str]:
    """Return how `hostd` is called: by the script that pip has installed, as users do, else as a module."""
    script = Path(sys.executable).with_name("hostd")
    return [str(script)] if script.exists() else [sys.executable, "-m", "hostd.cli"]


def _seconds(command: Sequence[str]) -> float:
    begin = time.perf_counter_ns()
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=COMMAND_LIMIT, check=False
    )
    spent = (time.perf_counter_ns() - begin) / 1e9
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace').strip()}")
    return spent


def _processes() -> Mapping[str, float]:
    """Run the smallest program there is, as often as a command."""
    return {"true": statistics.median(_seconds(["true"]) for _ in range(COMMANDS))}


@contextmanager
def _echo() -> Iterator[Callable[[], object]]:
    """Give a request that an asyncio program in another process answers with the same bytes, and no more work."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _serve_echo(theirs)
    theirs.close()
    request = pack_frame({"v": 1, "id": 1, "call": "ps", "args": {}})

    def ask() -> object:
        ours.sendall(request)
        frames = FrameReader()
        while not (messages := frames.feed(ours.recv(65536))):
            pass
        return messages[0]

    try:
        yield ask
    finally:
        ours.close()
        os.waitpid(pid, 0)


def _serve_echo(link: socket.socket) -> NoReturn:
    """Answer until the other end has closed, which it has, too, when its process is gone."""

    async def serve() -> None:
        reader, writer = await asyncio.open_unix_connection(sock=link)
        frames = FrameReader()
        while data := await reader.read(65536):
            for message in frames.feed(data):
                writer.write(pack_frame(message))
                await writer.drain()

    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        asyncio.run(serve())
        status = 0
    finally:
        os._exit(status)


# --- what is told ---


def _write(report: Report, found: Mapping[str, list[float]], guests: int) -> None:
    def seconds(name: str, how: str, *, baseline: bool = False) -> Figure:
        return report.add(name, found[name], "s", how, baseline=baseline)

    others, several = guests - 2, f"; median of {STARTS}"
    asked = "from the request on the control socket until the guest's first message on a channel is here"
    first = seconds("first_message", f"{asked}; no other guest has been asked for in the last {QUIET:g} s{several}")
    second = seconds("second_message", f"{asked}; asked for when the first one's message had come{several}")
    further = seconds(
        "further_messages",
        f"one request for {others} more, until the last one's first message is here, divided by {others}{several}",
    )
    seconds("stop", f"from the request to stop a running guest until the answer, when its process is gone{several}")
    seconds(
        "stop_each", f"one request to stop {guests - 1} guests, until all processes are gone, by {guests - 1}{several}"
    )
    true = seconds("true", f"start and end of the smallest program, `true`; median of {COMMANDS}", baseline=True)
    request = report.add(
        "request", found["request_ns"], "ns", f"`ps` on an open connection, {guests + 1} guests; median of {REQUESTS}"
    )
    echo = report.add(
        "echo",
        found["echo_ns"],
        "ns",
        f"the same frame sent back by a bare asyncio program in another process; median of {REQUESTS}",
        baseline=True,
    )
    runs = f"start to end of the process; median of {COMMANDS} runs in turn with the other commands"
    help_ = seconds("hostd_help", f"`hostd --help`: {runs}")
    ps = seconds("hostd_ps", f"`hostd ps CLUSTER`: {runs}")
    bare = seconds("python_pass", f"`python -c pass`, the same Python: {runs}", baseline=True)

    def limit(figure: Figure, most: float) -> None:
        to = Figure(name=f"{most * 1000:g} ms", how="", rounds=(most,) * len(figure.rounds), unit="s", better="lower")
        report.compare(f"{figure.name}/{to.name}", figure, to, at_most=1)

    limit(first, FIRST)
    limit(second, FURTHER)
    limit(further, FURTHER)
    report.compare("hostd_help/python_pass", help_, bare, at_most=HELP)
    report.compare("hostd_ps/python_pass", ps, bare)
    report.compare("first_message/python_pass", first, bare)
    report.compare("further_messages/python_pass", further, bare)
    report.compare("request/echo", request, echo)
    report.compare("further_messages/true", further, true)
