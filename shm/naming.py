"""Where regions are found by name: POSIX shared memory, the broker's sockets, and what a crash may leave of them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from shm.errors import ShmError

PREFIX = "hostd."
PART = re.compile(r"[a-z0-9_-]{1,48}")


def flat_name(name: str) -> str:
    """Return region `name` ("cluster/region", or one part only) with a dot for the slash. Raises ShmError."""
    parts = name.split("/")
    if len(parts) > 2 or not all(PART.fullmatch(part) for part in parts):
        raise ShmError(
            f"region name {name!r} is wrong: use cluster/region, of small letters, digits, '-' and '_', at most 48 each"
        )
    return ".".join(parts)


def posix_name(name: str) -> str:
    """Return the name of the region's POSIX shared memory."""
    return f"/{PREFIX}{flat_name(name)}"


def runtime_path() -> Path:
    """Return the folder for sockets, which may not exist yet: one for each user."""
    if given := os.environ.get("HOSTD_RUNTIME_DIR"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/hostd")
    if given := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(given, "hostd")
    return Path(f"/tmp/hostd-{os.geteuid()}")


def runtime_dir() -> Path:
    """Return the folder for sockets, made if need be: mode 0700, this user's. Raises ShmError."""
    path = runtime_path()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ShmError(f"runtime folder {path}: cannot be made: {error.strerror}; set HOSTD_RUNTIME_DIR") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ShmError(f"runtime folder {path} is not this user's; remove it or set HOSTD_RUNTIME_DIR")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def socket_path(name: str) -> Path:
    """Return the path of the socket that the region's broker listens on."""
    return runtime_path() / "regions" / f"{flat_name(name)}.sock"


def leftovers(name: str, backing: str | os.PathLike[str] = "shm") -> list[str]:
    """Return what is left of a region whose owner was killed, for `sweep`: paths, and "shm:NAME" for POSIX memory.

    A region's own file (`backing` is a path) is the user's and stays.
    """
    memory = [f"shm:{posix_name(name)}"] if backing == "shm" else []
    return [*memory, str(socket_path(name))]


def sweep(items: Iterable[str]) -> None:
    """Remove what `leftovers` named, as far as it is there."""
    import posix_ipc

    for item in items:
        if item.startswith("shm:"):
            with contextlib.suppress(posix_ipc.Error):
                posix_ipc.unlink_shared_memory(item.removeprefix("shm:"))
        elif Path(item).is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                Path(item).unlink(missing_ok=True)
