"""What a cluster file says, checked: plain data without any behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("spsc", "mpsc", "broadcast", "barrier")
ROLES = ("send", "receive", "join")


@dataclass(frozen=True)
class Region:
    """Named shared memory.

    Either `file` is given (raw: the file's own bytes, no header), or hostd makes it on `backing`: "shm",
    "hugetlb" or a path. `size` is the data area behind the channels, in bytes.
    """

    name: str
    size: int
    backing: str | Path
    file: Path | None

    @property
    def raw(self) -> bool:
        return self.file is not None


@dataclass(frozen=True)
class Channel:
    """A ring or barrier in a region; `size` and `max_message` in bytes (None: the default)."""

    name: str
    region: str
    kind: str
    size: int
    max_message: int | None
    lanes: int | None
    """senders of an mpsc or parties of a barrier, if more than the guests that use it"""


@dataclass(frozen=True)
class Slot:
    """An extra row of a guest's slot table."""

    name: str
    gpa: int
    size: int
    backing: str
    path: Path | None
    offset: int
    access: str


@dataclass(frozen=True)
class Guest:
    """One `[guest.NAME]` of the file: one guest, or `count` of them."""

    name: str
    sources: tuple[Path, ...]
    image: Path | None
    memory: int
    args: tuple[str, ...]
    env: Mapping[str, str]
    count: int | None
    after: tuple[str, ...]
    restart: str
    cpus: tuple[int, ...]
    regions: Mapping[str, str]
    channels: Mapping[str, str]
    options: Mapping[str, bool | None]
    slots: tuple[Slot, ...]
    log_limit: int


@dataclass(frozen=True)
class Cluster:
    """A whole cluster file. `path` is the file's; paths in it are absolute, resolved against its folder."""

    name: str
    path: Path
    regions: Mapping[str, Region]
    channels: Mapping[str, Channel]
    guests: Mapping[str, Guest]
    tables: Mapping[str, Any]
    """the file's tables as they were read, overrides applied"""
    baselines: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    overrides: tuple[str, ...] = field(default=())
    """the --set arguments it was read with"""
