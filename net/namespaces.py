"""Network namespaces: interfaces, sockets and programs are made in that of the thread that makes them."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from net.errors import NetError

CLONE_NEWNET = 0x40000000
NAMED = Path("/run/netns")
"""where `ip netns add NAME` keeps them"""
OWN = "/proc/thread-self/ns/net"

libc = ctypes.CDLL(None, use_errno=True)


def namespace_path(namespace: str | os.PathLike[str]) -> Path:
    """Return the path of a namespace given by its path (with a slash) or its name."""
    given = os.fspath(namespace)
    return Path(given) if "/" in given else NAMED / given


@contextmanager
def inside(namespace: str | os.PathLike[str] | None) -> Iterator[None]:
    """Put the calling thread into a namespace (None: leave it where it is), and back. Raises NetError."""
    if namespace is None:
        yield
        return
    path = namespace_path(namespace)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetError(
            f"network namespace {os.fspath(namespace)}: {path}: {error.strerror}; see `ip netns list`"
        ) from None
    try:
        own = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there, os.fspath(namespace))
            try:
                yield
            finally:
                _enter(own, "the one it came from")
        finally:
            os.close(own)
    finally:
        os.close(there)


def _enter(descriptor: int, name: str) -> None:
    if libc.setns(descriptor, CLONE_NEWNET) == 0:
        return
    number = ctypes.get_errno()
    why = {errno.EPERM: "CAP_SYS_ADMIN is needed; run it as root", errno.EINVAL: "that is no network namespace"}
    raise NetError(f"network namespace {name} can't be entered: {why.get(number, os.strerror(number))}")
