"""A Linux guest's programs, compiled for tests: with the sanitizers, so that a wrong access is a failure."""

from __future__ import annotations

import subprocess
from pathlib import Path

from guestlib.build import toolchain
from guestlib.linux.build import COMPILE, INCLUDES, SOURCES, compile_guest

SANITIZERS = "-g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
FUZZ = Path(__file__).resolve().parent / "fuzz"


def compile_agent(output: Path) -> Path:
    """Compile what a Linux guest runs."""
    return compile_guest(output, link=SANITIZERS)


def compile_fuzzer(output: Path) -> Path:
    """Compile the agent's session and copies with agent_fuzz.c in place of the rest."""
    compiler = toolchain()
    assert compiler
    parts = [FUZZ / "agent_fuzz.c", *(SOURCES / f"{name}.c" for name in ("session", "put", "get", "text"))]
    includes = [f"-I{folder}" for folder in (*INCLUDES, SOURCES)]
    subprocess.run([compiler, *COMPILE, *SANITIZERS.split(), *includes, "-o", output, *parts], check=True)
    return output


def compile_network(output: Path) -> Path:
    """Compile what sets a guest's networks up, with a main of its own."""
    compiler = toolchain()
    assert compiler
    parts = [Path(__file__).resolve().parent / "network_main.c", SOURCES / "network.c", SOURCES / "text.c"]
    subprocess.run([compiler, *COMPILE, *SANITIZERS.split(), f"-I{SOURCES}", "-o", output, *parts], check=True)
    return output
