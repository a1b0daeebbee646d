"""The fuzzers of vhost-user ports: virtqueues, and the protocol. Under sanitizers, and between pages without access."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

import net

SOURCES = Path(__file__).parent / "fuzz"
SWITCH = Path(net.__file__).parent / "src"
FUZZER = ("vhost_fuzz", "vring_fuzz", "vhost_user_fuzz", "vhost_bench", "vhost_guest")
PARTS = ("vhost_socket", "vhost_user", "vhost_memory", "vhost_frames", "vring", "frame", "faults")
LONG = bool(os.environ.get("HOSTD_LONG"))
QUEUE_SEEDS, MESSAGE_SEEDS = (10, 10) if LONG else (6, 4)
CASES = 100_000 if LONG else 10_000
"""of each seed: two millions in the long mode, a hundred thousand else"""


def build(target: Path) -> None:
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", f"-I{SWITCH}", "-Wl,--wrap=mmap,--wrap=munmap"]
    command += [str(SOURCES / f"{name}.c") for name in FUZZER]
    command += [str(SWITCH / f"{name}.c") for name in PARTS]
    subprocess.run([*command, "-o", str(target), "-lpthread"], check=True, timeout=300)


@pytest.fixture(scope="session")
def fuzzer(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The fuzzer, built once for all of pytest's workers."""
    folder = tmp_path_factory.getbasetemp()
    target = (folder if worker_id == "master" else folder.parent) / "vhost_fuzz"
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            build(target)
    return target


def run(fuzzer: Path, what: str, seed: int, cases: int, first: int | str = 0) -> list[int]:
    """Fuzz queues or messages; return the numbers that are printed."""
    command = [str(fuzzer), what, str(seed), str(cases), str(first)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return [int(word) for word in done.stdout.split() if word.isdigit()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(QUEUE_SEEDS))
def test_no_queue_hurts(fuzzer: Path, seed: int) -> None:
    """Nothing outside of the guest's memory is read or written, nothing hangs, and the next driver's frames arrive."""
    ran, taken, given, broken, missed, proven = run(fuzzer, "queues", seed, CASES)
    assert ran == CASES
    assert taken > CASES
    assert given > CASES / 4
    assert broken > CASES / 10
    assert missed > 0
    assert proven > CASES / 3


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(QUEUE_SEEDS // 6))
def test_while_another_processor_writes(fuzzer: Path, seed: int) -> None:
    """What was read once and checked is not read again."""
    cases = CASES // 5
    ran, taken, *_ = run(fuzzer, "queues", seed, cases, "race")
    assert ran == cases
    assert taken > cases


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(MESSAGE_SEEDS))
def test_no_message_hurts(fuzzer: Path, seed: int) -> None:
    """The port's view of memory and queues holds together, nothing is left open, and the next one is served."""
    ran, taken, refused, lived, proven = run(fuzzer, "messages", seed, CASES)
    assert ran == CASES
    assert taken > 2 * CASES
    assert refused > CASES / 2
    assert lived > CASES / 10
    assert proven > CASES / 5


@pytest.mark.parametrize("what", ["queues", "messages"])
def test_a_case_can_be_run_again(fuzzer: Path, what: str) -> None:
    """The same seed does the same; a case alone does what it did among others."""
    whole = run(fuzzer, what, 7, 40)
    assert run(fuzzer, what, 7, 40) == whole
    counts = [run(fuzzer, what, 7, 1, case) for case in range(40)]
    assert [sum(column) for column in zip(*counts, strict=True)] == whole
