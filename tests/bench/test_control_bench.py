"""hostd bench control: guests come and go by request, the report has its parts, nothing stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hostd.bench import BenchError, control, control_cluster
from hostd.bench.control_cluster import ControlCluster
from hostd.bench.report import Report
from hostd.cli.command import run_command
from hostd.cluster.file import load
from hostd.supervisor.directory import cluster_names


def states(cluster: ControlCluster) -> dict[str, str]:
    return {guest["name"]: guest["state"] for guest in cluster.request()["guests"]}


def test_guests_come_and_go(tmp_path: Path) -> None:
    with ControlCluster(4) as cluster:
        assert states(cluster) == {"stays": "running"} | dict.fromkeys(cluster.guests, "ended")
        times = cluster.start(cluster.guests[:3])
        assert times == sorted(times)
        assert len(times) == 3
        assert times[0] > 0
        assert states(cluster)["g-2"] == "running"
        assert cluster.stop(cluster.guests[:3]) > 0
        assert states(cluster)["g-2"] == "ended"
        file = tmp_path / "control.toml"
        file.write_text(cluster.text)
        assert list(load(file).guests) == ["g", "stays"]
        name = cluster.name
    assert name not in cluster_names()
    assert not [left for left in os.listdir("/dev/shm") if name in left]


def test_a_message_that_does_not_come_is_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(control_cluster, "MESSAGE_LIMIT", 0.05)
    with ControlCluster(3) as cluster, pytest.raises(BenchError, match=r"^of 2 first messages 0 came in 0 s$"):
        cluster.hear(2)


def test_a_supervisor_that_does_not_come_up_is_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(control_cluster, "TEXT", control_cluster.TEXT.replace("4MiB", "1MiB"))
    with pytest.raises(BenchError, match=r"^the supervisor did not come up: hostd run: .*memory"), ControlCluster(3):
        pass


def test_the_echo_echoes_and_its_process_ends() -> None:
    with control._echo() as ask:
        assert ask() == {"v": 1, "id": 1, "call": "ps", "args": {}}
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_command_that_fails_is_a_sentence() -> None:
    with pytest.raises(BenchError, match=r"^sh -c echo oh >&2; exit 3 failed: oh$"):
        control._seconds(["sh", "-c", "echo oh >&2; exit 3"])


COMMAND = [sys.executable, "-m", "hostd.cli", "bench", "control"]


def test_the_report_has_all_figures_and_the_targets(monkeypatch, capsys) -> None:
    for name in ("STARTS", "REQUESTS", "COMMANDS", "QUIET"):
        monkeypatch.setattr(control, name, 1 if name != "QUIET" else 0.01)
    assert run_command("bench", ["control", "--guests", "4", "--rounds", "1", "--json"]) == 0
    printed = capsys.readouterr()
    report = Report.model_validate(json.loads(printed.out))
    names = {
        "first_message",
        "second_message",
        "further_messages",
        "stop",
        "stop_each",
        "request",
        "hostd_help",
        "hostd_ps",
    }
    baselines = {"true", "echo", "python_pass"}
    assert {figure.name for figure in report.figures if not figure.baseline} == names
    assert {figure.name for figure in report.figures if figure.baseline} == baselines
    assert all(figure.rounds[0] > 0 for figure in report.figures)
    targets = {ratio.name: (ratio.target, ratio.at_most) for ratio in report.ratios if ratio.target is not None}
    assert targets == {
        "first_message/25 ms": (1, True),
        "second_message/12 ms": (1, True),
        "further_messages/12 ms": (1, True),
        "hostd_help/python_pass": (3, True),
    }
    first = report.figure("first_message")
    assert report.ratio("first_message/25 ms").rounds[0] == pytest.approx(first.rounds[0] / 0.025)
    assert "control.toml" in report.cluster_files
    assert "round 1 of 1: commands" in printed.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_nothing(number) -> None:
    run = subprocess.Popen(
        [*COMMAND, "--rounds", "1000", "--guests", "3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stderr is not None
    for line in run.stderr:
        if "warm-up: guests" in line:
            break
    name = f"control-{run.pid}"
    assert name in cluster_names()
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode
    deadline = 400 if number == signal.SIGKILL else 1
    while deadline and name in cluster_names():
        deadline -= 1
        signal.sigtimedwait([], 0.05)
    assert name not in cluster_names()
    assert not [left for left in os.listdir("/dev/shm") if name in left]


@pytest.mark.parametrize(
    ("count", "text"), [("2", "2 guests; 3 to 1000 are possible"), ("x", "'x' is no whole number")]
)
def test_bad_arguments_are_sentences(count: str, text: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command("bench", ["control", "--guests", count])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err
