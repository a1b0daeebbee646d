"""Compile what a Linux guest runs: one static binary that is init, agent and `guestctl`, by its name."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guestlib.build import BuildError, toolchain

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"
SHM = HERE.parent.parent / "shm"
INCLUDES = (HERE / "include", SHM / "include", SHM / "src")
CHANNELS = tuple(SHM / "src" / f"{name}.c" for name in ("end", "bell", "state"))

COMPILE = [
    *"-std=gnu11 -O2 -Wall -Wextra -Werror -fno-strict-aliasing -ffunction-sections -fdata-sections".split(),
    f"-ffile-prefix-map={HERE.parent.parent}=.",
]
LINK = "-static -s -Wl,--gc-sections -Wl,--build-id=none"


@dataclass(frozen=True)
class Binaries:
    """The programs of a Linux guest; they may be one file. An initramfs has them as /init and /bin/guestctl."""

    init: Path
    agent: Path
    guestctl: Path


def sources() -> list[Path]:
    """Return the C files, in a fixed order."""
    return [*sorted(SOURCES.glob("*.c")), *(path for path in CHANNELS if path.exists())]


def compile_guest(output: Path, flags: Sequence[str] = (), link: str = LINK) -> Path:
    """Compile the binary to `output`, which appears whole or not at all; `flags` come last. Raises BuildError."""
    return compile_static(sources(), output, [*flags, *(f"-I{folder}" for folder in INCLUDES)], link)


def compile_static(files: Sequence[Path], output: Path, flags: Sequence[str] = (), link: str = LINK) -> Path:
    """Compile C files to a static program, which appears whole or not at all. Raises BuildError."""
    compiler = toolchain()
    if compiler is None:
        raise BuildError("no C compiler found; install gcc (apt-get install gcc libc6-dev) or set CC")
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        done = subprocess.run(
            [compiler, *COMPILE, *link.split(), *flags, "-o", str(partial), *map(str, files)],
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
        )
        if done.returncode:
            raise BuildError(f"the programs of Linux guests do not compile:\n{done.stderr.strip()}")
        os.replace(partial, output)
    except OSError as error:
        raise BuildError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return output


def binaries(cache: Path) -> Binaries:
    """Return the programs, compiled once into the folder `cache` for these sources. Raises BuildError."""
    digest = hashlib.sha256(f"{toolchain()} {COMPILE} {LINK}".encode())
    headers = (path for folder in INCLUDES for path in folder.rglob("*.h"))
    for path in [*sources(), *sorted({*headers, *SOURCES.glob("*.h")})]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    output = cache / f"{digest.hexdigest()[:32]}.guest"
    if not output.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BuildError(f"{cache}: cannot be made: {error.strerror}; set XDG_CACHE_HOME") from None
        compile_guest(output)
    return Binaries(output, output, output)
