"""What hostd handed to this guest: the small files of /run/hostd (docs/linux-guest.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from shm._shm import lib
from shm.errors import ShmError
from shm.layout import KINDS, PAGE, ROLES, ChannelInfo, round_up

RUN = Path("/run/hostd")


@dataclass(frozen=True)
class HandedRegion:
    """A line of `regions`: the name of a region, its device's PCI address, "rw" or "ro", this guest's peer number.

    `size` in bytes; 0: not said.
    """

    name: str
    address: str
    access: str
    peer: int
    size: int


@dataclass(frozen=True)
class HandedEnd:
    """A line of `channels`: one end that is this guest's, and where its channel lies; `info` None: not said."""

    channel: str
    region: str
    role: str
    lane: int
    lanes: int
    flags: int
    info: ChannelInfo | None


def _lines(file: Path) -> list[list[str]]:
    try:
        return [line.split() for line in file.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ShmError(f"{file}: cannot be read: {error.strerror}") from None


def line_of(file: Path) -> str:
    """Return the one line of a file, or "" if there is none."""
    lines = _lines(file)
    return " ".join(lines[0]) if lines else ""


def regions(run: Path = RUN) -> list[HandedRegion]:
    """Return the regions. Raises ShmError."""
    file = run / "regions"
    try:
        return [
            HandedRegion(name, address, access, int(peer), int(rest[0]) if rest else 0)
            for name, address, access, peer, *rest in _lines(file)
        ]
    except ValueError:
        raise ShmError(f"{file}: a line is not REGION PCI-ADDRESS ACCESS PEER SIZE") from None


def ends(run: Path = RUN) -> list[HandedEnd]:
    """Return this guest's ends. Raises ShmError."""
    file = run / "channels"
    try:
        return [_end(fields) for fields in _lines(file)]
    except (ValueError, IndexError):
        raise ShmError(
            f"{file}: a line is not CHANNEL REGION ROLE LANE LANES FLAGS "
            "[KIND OFFSET SIZE MAX_MESSAGE DATA_BELL SPACE_BELL]"
        ) from None


def _end(fields: list[str]) -> HandedEnd:
    channel, region, role = fields[:3]
    lane, lanes, flags = map(int, fields[3:6])
    if role not in ROLES:
        raise ValueError(role)
    info = None
    if len(fields) > 6:
        kind = fields[6]
        offset, size, max_message, data_bell, space_bell = map(int, fields[7:12])
        if kind not in KINDS:
            raise ValueError(kind)
        info = ChannelInfo(channel, kind, offset, 0, size, max_message, lanes, flags, data_bell, space_bell)
        info = replace(info, span=round_up(lib.end_bytes(info.config()), PAGE))
    return HandedEnd(channel, region, role, lane, lanes, flags, info)
