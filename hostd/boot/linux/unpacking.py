"""From a kernel file to the vmlinux that guests map: the cache of unpacked kernels, and of what is known of each.

The cache holds `HASH.vmlinux` (by sha256 of the bzImage) and `KEY.kernel` (what `open_kernel` found, by the named
file's identity, size and times). Both appear whole or not at all; a lock keeps two makers from making two files, which
would not share their pages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from hostd.boot.errors import ImageError
from hostd.boot.linux.bzimage import MAGIC_AT, Packed, read_header, unpack
from hostd.boot.linux.kernel import Kernel
from hostd.boot.linux.vmlinux import ELF_MAGIC, read_vmlinux

FORMAT = 4
"""of the `.kernel` files; another number makes them anew"""
HEAD = 4096
CHUNK = 1 << 20


def opened(path: Path, cache: Path) -> Kernel:
    """Do what `open_kernel` says."""
    path = path.resolve()
    with path.open("rb") as file:
        cache.mkdir(parents=True, exist_ok=True)
        known = cache / f"{_key(path, file)}.kernel"
        kernel = _recalled(known)
        if kernel is None:
            kernel = _read(path, file, cache)
            _remember(known, kernel)
    return kernel


def _read(path: Path, file: BinaryIO, cache: Path) -> Kernel:
    head = file.read(HEAD)
    if head[:4] == ELF_MAGIC:
        return read_vmlinux(path, path)
    if head[MAGIC_AT : MAGIC_AT + 4] != b"HdrS":
        raise ImageError(
            f"{path}: is no Linux kernel for x86: neither an ELF file nor a bzImage ('HdrS' at {MAGIC_AT:#x}); "
            "name a vmlinux or a vmlinuz"
        )
    packed = read_header(path, file)
    vmlinux = _unpacked(path, file, packed, cache)
    kernel = read_vmlinux(vmlinux, path)
    return dataclasses.replace(kernel, setup_header=packed.setup_header, version=packed.version or kernel.version)


def _unpacked(path: Path, file: BinaryIO, packed: Packed, cache: Path) -> Path:
    """Return the cache's unpacked file for the bzImage `file`, making it if it is missing."""
    file.seek(0)
    vmlinux = cache / f"{_digest(file)}.vmlinux"
    with _locked(cache):
        if not vmlinux.exists():
            with _appearing(vmlinux) as out:
                unpack(path, file, packed, out)
    return vmlinux


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while data := file.read(CHUNK):
        digest.update(data)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Hold the cache's lock; the kernel gives it back however this process ends."""
    fd = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write that becomes `path` at the end, on disk and read-only; or nothing, if anything fails."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as out:
        try:
            yield out.file
            out.flush()
            os.fsync(out.fileno())
            os.chmod(out.name, 0o444)
            os.replace(out.name, path)
        except BaseException:
            os.unlink(out.name)
            raise


def _key(path: Path, file: BinaryIO) -> str:
    found = os.fstat(file.fileno())
    what = (FORMAT, str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _recalled(known: Path) -> Kernel | None:
    """Return what `_remember` kept, if its vmlinux is still the same file."""
    try:
        kept: dict[str, Any] = json.loads(known.read_bytes())
        plain = kept["kernel"]
        if _state(plain["path"]) != kept["vmlinux"]:
            return None
        return Kernel.of({**plain, "setup_header": bytes.fromhex(plain["setup_header"])})
    except (OSError, ValueError, TypeError, KeyError):  # Missing or damaged: it is made anew.
        return None


def _remember(known: Path, kernel: Kernel) -> None:
    plain = {**kernel.plain(), "setup_header": kernel.setup_header.hex()}
    with _appearing(known) as out:
        out.write(json.dumps({"kernel": plain, "vmlinux": _state(kernel.path)}).encode())


def _state(path: str) -> list[int]:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]
