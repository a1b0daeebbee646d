"""What uplinks change on this host, written down before it is changed: `sweep` finds what a crash leaves."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import shm
from net.errors import NetError
from shm.naming import flat_name, runtime_path


@dataclass
class Record:
    """One network's uplink: whose it is, where, and how everything was before."""

    network: str
    owner: tuple[int, int]
    """process id, and when it started (clock ticks after boot)"""
    namespace: str | None
    """path of the network namespace; None: the owner's own"""
    namespace_id: tuple[int, int]
    interface: str
    index: int
    """the interface's number: another interface of that name has another one"""
    addresses: list[str] = field(default_factory=list)
    """added to the interface, like 10.0.0.1/24"""
    routes: list[str] = field(default_factory=list)
    """added to it"""
    up: bool = True
    """the link was up before"""
    mtu: int | None = None
    """bytes before, if that was changed"""
    table: str | None = None
    """of nftables"""
    sysctls: dict[str, str] = field(default_factory=dict)
    """by path below /proc/sys, the values before; those that other networks' records name too stay until the last"""

    @property
    def live(self) -> bool:
        """Tell whether its owner is still there."""
        return started(self.owner[0]) == self.owner[1]


def started(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None if there is none, or it waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def folder() -> Path:
    """Return the folder of the records, made if need be. Raises NetError."""
    try:
        path = shm.runtime_dir() / "uplinks"
        path.mkdir(mode=0o700, exist_ok=True)
    except (shm.ShmError, OSError) as error:
        raise NetError(f"uplinks can't be written down: {error}") from None
    return path


@contextmanager
def locked() -> Iterator[None]:
    """Keep all other processes from changing uplinks."""
    descriptor = os.open(folder() / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def path_of(network: str) -> Path:
    """Return the path of a network's record. Raises NetError for what is no name of a network."""
    try:
        return folder() / f"{flat_name(network)}.json"
    except shm.ShmError:
        raise NetError(
            f"network name {network!r} is wrong: use cluster/network, of small letters, digits, '-' and '_'"
        ) from None


def exists(network: str) -> bool:
    """Tell whether a network has a record."""
    return (runtime_path() / "uplinks" / f"{flat_name(network)}.json").exists()


def write(record: Record) -> None:
    """Write a record down, whole or not at all."""
    path = path_of(record.network)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(record)))
    draft.replace(path)


def forget(record: Record) -> None:
    """Remove a record: nothing of it is left."""
    path_of(record.network).unlink(missing_ok=True)


def read(network: str) -> Record | None:
    """Return a network's record, if there is one."""
    return _load(path_of(network))


def read_all() -> list[Record]:
    """Return all records."""
    found = (_load(path) for path in sorted(folder().glob("*.json")))
    return [record for record in found if record is not None]


def _load(path: Path) -> Record | None:
    with suppress(FileNotFoundError):
        try:
            fields = json.loads(path.read_text())
            for key in ("owner", "namespace_id"):
                fields[key] = tuple(fields[key])
            return Record(**fields)
        except (ValueError, TypeError, KeyError):
            raise NetError(
                f"{path} is no record of an uplink; look at it, undo by hand what it names, remove it"
            ) from None
    return None
