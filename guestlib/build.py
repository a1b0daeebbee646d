"""Compile a C program into a unikernel: the program and the runtime, one static ELF file with no libc."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNTIME = HERE / "runtime"
INCLUDES = (HERE / "include", HERE.parent / "shm" / "include")

COMPILE = (
    "-std=gnu11 -O3 -g -Wall -Wextra -ffreestanding -fbuiltin -fno-tree-loop-distribute-patterns -fno-pic -no-pie "
    "-fno-stack-protector -fno-asynchronous-unwind-tables -fno-strict-aliasing -fno-delete-null-pointer-checks "
    "-ffunction-sections -fdata-sections"
).split()
# A unikernel runs on the machine that builds it, and its FPU state is set up for AVX.
AVX2 = ["-march=x86-64-v3"]
LINK = [
    "-nostdlib",
    "-static",
    # A program has of the runtime what it uses.
    "-Wl,--gc-sections",
    f"-Wl,-T,{RUNTIME / 'link.ld'}",
    "-Wl,-z,max-page-size=4096",
    "-Wl,--build-id=none",
]


class BuildError(Exception):
    """A program that could not be built; the text is one sentence, with the compiler's own words behind it."""


def toolchain() -> str | None:
    """Return the path of the C compiler ($CC, else gcc), or None."""
    return shutil.which(os.environ.get("CC", "gcc"))


def has_avx2() -> bool:
    """Tell whether this host's processor has AVX2 (and so the other instructions of x86-64-v3)."""
    flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    return {"avx2", "bmi1", "bmi2", "fma", "movbe", "f16c", "abm"} <= set(flags)


def command(
    compiler: str,
    sources: Iterable[Path],
    output: Path,
    flags: Sequence[str] = (),
    runtime: Sequence[Path] | None = None,
) -> list[str]:
    """Return the compiler call that makes `output` of `sources` and the `runtime` (default: its sources).

    `flags` come last of the compile flags.
    """
    return [
        *(*_compile(compiler, flags), *LINK, "-o", str(output)),
        *map(str, [*sources, *(_runtime_sources() if runtime is None else runtime)]),
        "-lgcc",
    ]


def _compile(compiler: str, flags: Sequence[str]) -> list[str]:
    return [compiler, *COMPILE, *(AVX2 if has_avx2() else []), *flags, *(f"-I{folder}" for folder in INCLUDES)]


def _runtime_sources() -> list[Path]:
    return sorted(RUNTIME.glob("*.c"))


def _compiled_runtime(compiler: str, flags: Sequence[str]) -> list[Path]:
    """Return the runtime as one object, which is kept for the next program; its sources where that can't be."""
    call = _compile(compiler, flags)
    identity = Path(compiler).resolve().stat()
    digest = hashlib.sha256(repr((call, identity.st_size, identity.st_mtime_ns)).encode())
    headers = (path for folder in (RUNTIME, *INCLUDES) for path in folder.rglob("*.h"))
    for path in [*_runtime_sources(), *sorted(headers)]:
        digest.update(repr(path).encode() + path.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hostd", "programs")
    made = folder / f"runtime-{digest.hexdigest()[:32]}.o"
    if made.exists():
        return [made]
    partial = folder / f".{made.name}.{os.getpid()}.{threading.get_ident()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        parts = ["-r", "-nostdlib", "-o", str(partial), *map(str, _runtime_sources())]
        if subprocess.run([*call, *parts], capture_output=True, check=False).returncode == 0:
            partial.replace(made)
            return [made]
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    # With the program the compiler will say what is wrong.
    return _runtime_sources()


def compile_program(sources: Sequence[str | Path], output: str | Path, flags: Sequence[str] = ()) -> Path:
    """Compile the C files `sources` and the runtime into the unikernel `output`; return its path.

    `output` appears whole or not at all. Raises BuildError when a source is missing, there is no compiler, or it fails.
    """
    paths, target = [Path(s) for s in sources], Path(output)
    for path in paths:
        if not path.is_file():
            raise BuildError(f"{path}: no such source file")
    compiler = toolchain()
    if compiler is None:
        raise BuildError("no C compiler found; install gcc (apt-get install gcc) or set CC")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        done = subprocess.run(
            command(compiler, paths, partial, flags, _compiled_runtime(compiler, flags)),
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
        )
        if done.returncode:
            raise BuildError(f"{', '.join(map(str, paths))}: does not compile:\n{done.stderr.strip()}")
        os.replace(partial, target)
    except OSError as error:
        raise BuildError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return target
