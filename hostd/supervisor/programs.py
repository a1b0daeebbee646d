"""What guests run: programs compiled once and kept by content, images read once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from guestlib import build
from hostd.boot.elf import Image, read_image
from hostd.boot.errors import ImageError
from hostd.cluster.model import Guest

KEPT = 64
"""compiled programs that are kept, the last used ones"""


def cache_folder() -> Path:
    """Return the user's folder of compiled programs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "hostd", "programs")


def images(guests: Iterable[Guest]) -> dict[str, Image]:
    """Return the image of each guest by name: programs compiled where they have to be, each file read once.

    Raises ImageError and BuildError, each one sentence.
    """
    read: dict[Path, Image] = {}
    found = {}
    for guest in guests:
        path = guest.image or compiled(guest.sources)
        if path not in read:
            read[path] = _read(guest.name, path)
        found[guest.name] = read[path]
    return found


def _read(guest: str, path: Path) -> Image:
    try:
        return read_image(path)
    except OSError as error:
        raise ImageError(f"guest.{guest}.image: {path}: cannot be read: {error.strerror}") from None
    except ImageError as error:
        raise ImageError(f"guest.{guest}.image: {error}") from None


def compiled(sources: Iterable[Path]) -> Path:
    """Return the program made of `sources`: an earlier one of the same content, or a new one. Raises BuildError."""
    paths = list(sources)
    for path in paths:
        if not path.is_file():
            raise build.BuildError(f"{path}: no such source file")
    folder = cache_folder()
    program = folder / f"{paths[0].stem}-{_fingerprint(paths)}.elf"
    if program.exists():
        with contextlib.suppress(OSError):
            os.utime(program)
        return program
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise build.BuildError(f"{folder}: cannot be made: {error.strerror}; set XDG_CACHE_HOME") from None
    build.compile_program(paths, program)
    _forget_old(folder)
    return program


def _fingerprint(sources: list[Path]) -> str:
    """Return a digest of the compiler, its call, and every file that the compiler would read."""
    compiler = build.toolchain()
    if compiler is None:
        raise build.BuildError("no C compiler found; install gcc (apt-get install gcc) or set CC")
    call = build.command(compiler, sources, Path("program"))
    digest = hashlib.sha256(repr(call).encode())
    identity = Path(compiler).resolve().stat()
    digest.update(f"{identity.st_size} {identity.st_mtime_ns}".encode())
    compile_part = [word for word in call[: call.index("-o")] if not word.startswith("-Wl,")]
    inputs = [word for word in call if word.endswith(".c")]
    listing = subprocess.run([*compile_part, "-MM", *inputs], capture_output=True, text=True, check=False)
    if listing.returncode:
        names = ", ".join(map(str, sources))
        raise build.BuildError(f"{names}: does not compile:\n{listing.stderr.strip()}")
    rules = listing.stdout.replace("\\\n", " ").split()
    for name in sorted({word for word in rules if not word.endswith(":")}):
        digest.update(Path(name).read_bytes())
    digest.update((build.RUNTIME / "link.ld").read_bytes())
    return digest.hexdigest()[:32]


def _forget_old(folder: Path) -> None:
    with contextlib.suppress(OSError):
        programs = sorted(folder.glob("*.elf"), key=lambda path: path.stat().st_mtime, reverse=True)
        for program in programs[KEPT:]:
            program.unlink(missing_ok=True)
