"""Frames that nobody would send, against the runtime's IPv4 on this host, under the sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from guest_programs import FUZZ, SANITIZERS  # type: ignore[import-not-found]

from guestlib.build import INCLUDES, RUNTIME, toolchain

LONG = bool(os.environ.get("HOSTD_LONG"))
CASES = 5_000_000 if LONG else 200_000
FLAGS = "-std=gnu11 -O1 -Wall -Wextra -Werror -fno-strict-aliasing -fno-delete-null-pointer-checks".split()


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net_fuzz.c with the runtime's network."""
    program: Path = tmp_path_factory.mktemp("net") / "net_fuzz"
    compiler = toolchain()
    assert compiler
    includes = [f"-I{folder}" for folder in (*INCLUDES, RUNTIME)]
    sources = [FUZZ / "net_fuzz.c", *sorted(RUNTIME.glob("net_*.c"))]
    subprocess.run([compiler, *FLAGS, *SANITIZERS.split(), *includes, "-o", program, *sources], check=True)
    return program


@pytest.mark.timeout(600 if LONG else 60)
@pytest.mark.parametrize("seed", range(3, 11 if LONG else 5))
def test_hostile_frames(fuzzer: Path, seed: int) -> None:
    done = subprocess.run([fuzzer, str(seed), str(CASES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
