"""What networks and ports are called, and where their sockets are: RUNTIME/net/CLUSTER/NETWORK/."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from net.errors import NetError
from shm.naming import runtime_path

PART = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
PORT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
CONTROL = "control"
"""no port's socket has this name: theirs end with .sock"""
PATH_LIMIT = 107  # of a Unix socket, less the closing zero


def split(network: str) -> tuple[str, str]:
    """Return the parts of CLUSTER/NETWORK. Raises NetError."""
    cluster, slash, name = network.partition("/")
    if not slash or not PART.fullmatch(cluster) or not PART.fullmatch(name):
        raise NetError(f"{network!r} is no network; write CLUSTER/NETWORK, as `hostd net ls` shows them")
    return cluster, name


def check_port(name: object) -> str:
    """Return the name of a port if it can be one. Raises NetError."""
    if not isinstance(name, str) or not PORT.fullmatch(name):
        raise NetError(f"{name!r} is no name of a port; use 1 to 63 small letters, digits, '-', '_' and '.'")
    return name


def networks_folder() -> Path:
    """Return the folder with a folder for each cluster that has networks; it may not exist."""
    return runtime_path() / "net"


def folder(cluster: str, network: str) -> Path:
    """Return the folder of a network's sockets; it exists as long as its switch."""
    return networks_folder() / cluster / network


def control_path(cluster: str, network: str) -> Path:
    """Return the path of the switch's control socket."""
    return folder(cluster, network) / CONTROL


def vhost_path(cluster: str, network: str, port: str) -> Path:
    """Return the path of a vhost-user port's socket. Raises NetError if it is too long for one."""
    path = folder(cluster, network) / f"{check_port(port)}.sock"
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise NetError(
            f"{path}: is longer than a Unix socket's {PATH_LIMIT} bytes; "
            "set HOSTD_RUNTIME_DIR to a shorter path or shorten the names"
        )
    return path


def region_name(cluster: str, network: str, port: str) -> str:
    """Return the name of the region with a ring port's rings; nobody joins it by name."""
    return f"{cluster}/net.{network}.{port}"


def networks() -> list[str]:
    """Return CLUSTER/NETWORK of those that have a folder: their switch runs, or was killed."""
    found: list[str] = []
    with suppress(OSError):
        for cluster in networks_folder().iterdir():
            with suppress(OSError):
                found += (f"{cluster.name}/{network.name}" for network in cluster.iterdir() if network.is_dir())
    return sorted(found)


@contextmanager
def near(path: Path) -> Iterator[str]:
    """Give `path`, to bind or connect a socket, by its folder's descriptor: a socket's path may have 107 bytes only."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
