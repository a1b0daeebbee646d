"""Peers of ring ports that do what they like, in a program of its own under sanitizers (fuzz/switch_fuzz.c)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import net
import shm

SOURCE = Path(__file__).parent / "fuzz" / "switch_fuzz.c"
PARTS = ("forward", "addresses", "faults", "frame", "offload", "ring_port")
CASES = 300_000 if os.environ.get("HOSTD_LONG") else 500


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled with the sanitizers."""
    target = tmp_path_factory.mktemp("fuzz") / "switch_fuzz"
    source = Path(net.__file__).parent / "src"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all"]
    flags += ["-fsanitize=address,undefined", f"-I{Path(shm.__file__).parent / 'include'}", f"-I{source}", "-pthread"]
    parts = [str(source / f"{part}.c") for part in PARTS]
    subprocess.run(["gcc", *flags, str(SOURCE), *parts, "-o", str(target)], check=True, timeout=100)
    return target


@pytest.mark.timeout(3600)
def test_peers_that_write_what_they_like(fuzzer: Path) -> None:
    done = subprocess.run([str(fuzzer), "1", str(CASES)], capture_output=True, text=True, check=False, timeout=3600)
    assert (done.returncode, done.stderr) == (0, "")
    told = re.fullmatch(
        r"(\d+) cases, (\d+) frames arrived, \d+ times scribbled; "
        r"quarantined: (\d+) ring, (\d+) memory gone; \d+ not\n",
        done.stdout,
    )
    assert told
    cases, arrived, spoiled, gone = map(int, told.groups())
    assert cases == CASES
    assert arrived > 50 * CASES
    assert spoiled > CASES // 20
    assert gone > CASES // 20
