"""The numbers and structs of agent_protocol.h, for who speaks to the agent from Python (docs/agent-protocol.md)."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

PORT = "hostd.agent"
VERSION = 1
SYNC = b"hostd-agent-sync"
MAX_PAYLOAD = 65536
WINDOW = 262144
MAX_STREAMS = 32
MAX_PATH = 4095

FRAME = struct.Struct("<IIB3x")
"""length, stream, type; behind the payload stands MARK"""
MARK = struct.Struct("<I")
U32 = struct.Struct("<I")
HELLO = struct.Struct("<II")
"""version, session"""
WELCOME = struct.Struct("<II")
"""version, flags"""
EXEC = struct.Struct("<IHHIIHH")
"""flags, rows, columns, uid, gid, argc, envc"""
SIZE = struct.Struct("<HH")
"""rows, columns"""
EXIT = struct.Struct("<II")
"""status, signal"""
COPY = struct.Struct("<I")
"""flags"""
DONE = struct.Struct("<QQQ")
"""files, bytes, skipped"""
SHUTDOWN = struct.Struct("<II")
"""how, grace_ms"""
SEED = 32
BECOME = struct.Struct(f"<Q{SEED}s")
"""real time in ns, seed"""
ERROR = struct.Struct("<I")
"""code"""
RECORD = struct.Struct("<B3xIIIqQHH4x")
"""kind, mode, uid, gid, mtime_ns, size, path_size, target_size"""


class Type(IntEnum):
    """Types of frames."""

    DATA = 1
    EOF = 2
    CREDIT = 3
    PING = 4
    PONG = 5
    ERROR = 6
    HELLO = 16
    EXEC = 17
    SIGNAL = 18
    RESIZE = 19
    CANCEL = 20
    PUT = 21
    GET = 22
    SHUTDOWN = 23
    RESULT_TAKEN = 24
    BECOME = 25
    WELCOME = 32
    STARTED = 33
    STDOUT = 34
    STDERR = 35
    EXIT = 36
    DONE = 37
    RESULT = 38
    BYE = 39
    BECAME = 40


class WelcomeFlag(IntFlag):
    """What the agent is."""

    IS_INIT = 1
    HAS_COMMAND = 2


class ExecFlag(IntFlag):
    """How a command is started."""

    TTY = 1
    NO_STDIN = 2
    CLEAN_ENV = 4


class CopyFlag(IntFlag):
    """How a copy is made."""

    EXACT = 1
    OWNER = 2


class Shutdown(IntEnum):
    """What follows a shutdown."""

    POWER_OFF = 0
    REBOOT = 1


class Kind(IntEnum):
    """Kinds of a copy's records."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


def frame(session: int, kind: Type, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return one frame. The payload has at most MAX_PAYLOAD bytes."""
    return FRAME.pack(len(payload), stream, kind) + payload + MARK.pack(session)


def strings(*texts: str | bytes) -> bytes:
    """Return texts zero-terminated, as frames carry them."""
    return b"".join((text.encode() if isinstance(text, str) else text) + b"\0" for text in texts)
