"""The device fuzzer: random configuration space, BARs, ports, queues and descriptors against every device."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import hostd

SOURCES = Path(__file__).parent / "fuzz"
ROOT = Path(hostd.__file__).parent
DEVICES = ROOT / "devices"
LONG = bool(os.environ.get("HOSTD_LONG"))
SEEDS = 10
CASES = 100_000 if LONG else 10_000
"""of each seed: a million in the long mode, a hundred thousand else"""


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("fuzz") / "device_fuzz"
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
    command += [f"-I{folder}" for folder in (DEVICES, DEVICES / "virtio", ROOT / "memory", ROOT / "kvm")]
    command += [str(path) for folder in (SOURCES, DEVICES, DEVICES / "virtio") for path in sorted(folder.glob("*.c"))]
    subprocess.run([*command, "-o", str(target), "-lpthread"], check=True, timeout=300)
    return target


def run(fuzzer: Path, seed: int, cases: int, first: int | str = 0) -> str:
    done = subprocess.run(
        [str(fuzzer), str(seed), str(cases), str(first)], capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_device_is_hurt(fuzzer: Path, seed: int) -> None:
    """Nothing is read or written outside the guest's memory, nothing hangs, and after a reset every device works."""
    ran, used, broken, proven = (int(word) for word in run(fuzzer, seed, CASES).split() if word.isdigit())
    assert ran == CASES
    assert used > CASES
    assert broken > CASES / 10
    assert proven > CASES / 3


@pytest.mark.parametrize("seed", range(2))
def test_while_another_vcpu_writes(fuzzer: Path, seed: int) -> None:
    """What was read once and checked is not read again."""
    cases = CASES // 10
    ran, used, broken, _ = (int(word) for word in run(fuzzer, seed, cases, "race").split() if word.isdigit())
    assert ran == cases
    assert used > cases
    assert broken > cases / 10


def test_a_case_can_be_run_again(fuzzer: Path) -> None:
    """The same seed does the same; a case alone does what it did among others."""
    whole = run(fuzzer, 7, 40)
    assert run(fuzzer, 7, 40) == whole
    counts = [[int(word) for word in run(fuzzer, 7, 1, case).split() if word.isdigit()] for case in range(40)]
    assert [sum(column) for column in zip(*counts, strict=True)] == [int(w) for w in whole.split() if w.isdigit()]
