"""hostd exec: a command in a guest as if it were here."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from office import LIMIT, Agent, Office, command, hostd  # type: ignore[import-not-found]

from hostd.agent.link import AgentError
from hostd.control.client import ControlError
from hostd.host import BackgroundCluster


def test_status_output_and_errors_come_apart(agent: Agent) -> None:
    done = hostd("exec", "a", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert hostd("exec", "c/a", "sh", "-c", "kill -KILL $$").returncode == 128 + 9


def test_input_goes_through_whole(agent: Agent) -> None:
    data = os.urandom(3 << 20)
    done = hostd("exec", "a", "--", "cat", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_a_command_that_reads_nothing_ends_before_its_input(agent: Agent) -> None:
    done = hostd("exec", "a", "--", "true", stdin=bytes(5 << 20))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_environment_and_folder(agent: Agent) -> None:
    arguments = ("-e", "A=b c", "-e", "X=", "--cwd", "/usr", "a", "--", "sh", "-c", "pwd; echo $A:$X:")
    assert hostd("exec", *arguments).stdout == b"/usr\nb c::\n"


def test_a_file_can_be_its_input(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"abc" * 100_000)
    with (tmp_path / "input").open("rb") as file:
        done = subprocess.run(
            command(["exec", "a", "--", "wc", "-c"]), stdin=file, capture_output=True, timeout=LIMIT, check=False
        )
    assert done.stdout.strip() == b"300000"


def test_json_has_all_of_it(agent: Agent) -> None:
    done = hostd("exec", "--json", "a", "--", "sh", "-c", "cat; echo err >&2; exit 3", stdin=b"in")
    assert done.returncode == 3
    assert json.loads(done.stdout) == {"exit_code": 3, "stdout": "in", "stderr": "err\n"}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("a", "--", "nosuch"), 127, "nosuch: No such file or directory"),
        (("a", "--", "/"), 126, "/: Permission denied"),
        (("--cwd", "/nowhere", "a", "--", "true"), 127, "true: its working directory: No such file or directory"),
        (("u", "--", "true"), 125, "guest u: is a unikernel, which has no agent"),
        (("x", "--", "true"), 125, "no cluster and no guest named 'x' runs"),
        (("c", "--", "true"), 125, "c is a cluster of 3 guests; name one, such as c/a"),
        (("--wait", "0.2", "b", "--", "true"), 125, "guest b: its agent does not answer"),
        (("-e", "A", "a", "--", "true"), 125, "--env A: is not NAME=VALUE"),
    ],
)
def test_what_cannot_be_run_is_told(agent: Agent, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    done = hostd("exec", *arguments)
    assert done.returncode == code
    assert done.stderr.decode().startswith(f"hostd exec: {sentence}")
    assert done.stderr.count(b"\n") == 1


def test_an_agent_that_is_late_is_waited_for(office: Office, guest_binary: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(["exec", "a", "--", "echo", "late"]), stdout=subprocess.PIPE)
    time.sleep(0.5)
    agent = Agent(guest_binary, office.directory.guests / "a.agent.sock", tmp_path / "run", tmp_path / "root")
    try:
        assert process.communicate(timeout=LIMIT)[0] == b"late\n"
    finally:
        agent.close()


def test_signals_go_to_the_command(agent: Agent) -> None:
    script = "trap 'echo got INT; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        command(["exec", "-n", "a", "--", "sh", "-c", script]), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, err) == (5, b"got INT\n", b"")


def test_signals_overtake_input_that_is_not_taken(agent: Agent) -> None:
    process = subprocess.Popen(
        command(["exec", "a", "--", "sh", "-c", "echo ready; exec sleep 1000"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.set_blocking(process.stdin.fileno(), False)
    stuck = time.monotonic() + 0.5
    while time.monotonic() < stuck:
        try:
            os.write(process.stdin.fileno(), bytes(65536))
            stuck = time.monotonic() + 0.5
        except BlockingIOError:
            time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 128 + signal.SIGTERM
    process.stdin.close()
    process.stdout.close()


def test_a_command_whose_caller_is_killed_is_hung_up(agent: Agent) -> None:
    process = subprocess.Popen(
        command(["exec", "-n", "a", "--", "sh", "-c", "echo $$; exec sleep 1000"]), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + LIMIT
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_caller_that_reads_nothing_stops_nobody_else(agent: Agent) -> None:
    slow = subprocess.Popen(
        command(["exec", "-n", "a", "--", "sh", "-c", "echo go; exec cat /dev/zero"]), stdout=subprocess.PIPE
    )
    assert slow.stdout is not None
    assert slow.stdout.read(3) == b"go\n"
    time.sleep(0.3)
    assert hostd("exec", "a", "--", "echo", "on").stdout == b"on\n"
    slow.kill()
    slow.wait()
    slow.stdout.close()


def test_a_guest_that_ends_in_the_middle_is_told(office: Office, agent: Agent) -> None:
    process = subprocess.Popen(
        command(["exec", "-n", "a", "--", "sh", "-c", "echo ready; exec sleep 1000"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    office.end("a", "guest a: kernel panic")
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 125
    assert err == b"hostd exec: guest a: ended: guest a: kernel panic\n"
    assert b"guest a: is not running (ended)" in hostd("exec", "a", "--", "true").stderr


def test_a_terminal_is_one_there_too(agent: Agent) -> None:
    ours, theirs = pty.openpty()
    script = "test -t 0 && test -t 2 && stty size; read line; echo got $line >&2; read line; exit 4"
    process = subprocess.Popen(
        command(["exec", "a", "--", "sh", "-c", script]), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = _until(ours, b"24 80\r\n")
    os.write(ours, b"word\r")
    seen += _until(ours, b"got word\r\n")
    os.write(ours, b"\x03")  # Ctrl-C, which is a key here.
    assert process.wait(LIMIT) == 128 + signal.SIGINT
    os.close(ours)
    assert seen.count(b"word") == 2  # Echoed once, by the guest.


def test_a_terminal_may_be_asked_for_and_refused(agent: Agent) -> None:
    script = "test -t 0 && test -t 1 && stty size"
    assert hostd("exec", "-t", "a", "--", "sh", "-c", script).stdout == b"24 80\r\n"
    assert hostd("exec", "-T", "a", "--", "sh", "-c", script).returncode == 1


def _until(descriptor: int, wanted: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + LIMIT
    while wanted not in seen:
        assert select.select([descriptor], [], [], deadline - time.monotonic())[0], seen
        seen += os.read(descriptor, 4096)
    return seen


def test_from_python(agent: Agent) -> None:
    cluster = BackgroundCluster("c")
    a = cluster.guests["a"]
    done = a.exec("sh", "-c", "cat; echo $X >&2; exit 2", stdin=b"in", env={"X": "y"})
    assert (done.exit_code, done.stdout, done.stderr) == (2, b"in", b"y\n")
    with pytest.raises(AgentError, match="nosuch: No such file"):
        a.exec("nosuch")
    with pytest.raises(ControlError, match="is a unikernel"):
        cluster.guests["u"].exec("true")
    with pytest.raises(AgentError, match="zero byte"):
        a.exec("a\0b")
    cluster.close()
