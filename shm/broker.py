"""Handing regions out by name: the memory and the bells go to whoever of this user asks, over a Unix socket.

A connection is an attachment: when it breaks, the ends it held are marked gone, and the peers' bells ring.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shm import naming, wire
from shm.claims import Claims, End
from shm.errors import ShmError
from shm.region import Region

CONNECTIONS = 1024  # of one region


@dataclass(eq=False)
class Served:
    """A region, its socket, and who has joined it."""

    region: Region
    claims: Claims
    listener: socket.socket
    path: Path
    peers: set[Peer] = field(default_factory=set)


@dataclass(eq=False)
class Peer:
    """One who has joined; `access` is None before it said hello."""

    served: Served
    connection: socket.socket
    access: str | None = None


class Broker:
    """Serves regions from a thread of its own, until `close`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._served: dict[Region, Served] = {}
        self._lock = threading.RLock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="region-broker", daemon=True)
        self._thread.start()

    # --- for the owner -----------------------------------------------------------------------------------------

    def add(self, region: Region, reserved: Iterable[End] = ()) -> None:
        """Serve `region`; its `reserved` ends (channel, role, lane) are guests' and nobody else gets them.

        Of an adopted region, ends that some process still holds, not as a guest, are marked gone: it has lost its owner
        and has to join anew. Raises ShmError.
        """
        if region.claims is None:
            raise ShmError(f"region {region.name} is not this process's to serve")
        region.claims.reserve(reserved)
        self._disown(region)
        listener, path = _listen(region.name)
        served = Served(region, region.claims, listener, path)
        with self._lock:
            if self._closed:
                listener.close()
                raise ShmError(f"region {region.name}: the broker is closed")
            self._served[region] = served
            region._broker = self
            self._selector.register(listener, selectors.EVENT_READ, served)
        self._poke()

    def remove(self, region: Region) -> None:
        """Stop serving `region`: who has joined it keeps the memory; the ends it holds are marked gone."""
        with self._lock:
            served = self._served.pop(region, None)
            if served is None:
                return
            self._selector.unregister(served.listener)
            with contextlib.suppress(OSError):
                served.path.unlink(missing_ok=True)
                served.path.parent.rmdir()  # unless it serves others
            served.listener.close()
            for peer in list(served.peers):
                self._drop(peer)
            region._broker = None
        self._poke()

    def close(self) -> None:
        """Stop serving everything. A second time does nothing."""
        with self._lock:
            for region in list(self._served):
                self.remove(region)
            if self._closed:
                return
            self._closed = True
        self._poke()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._selector.close()
        os.close(self._wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _disown(region: Region) -> None:
        assert region.claims is not None
        for info in region.channels.values():
            for role in ("join",) if info.kind == "barrier" else ("send", "receive"):
                many = role == "join" or (info.kind == "mpsc" and role == "send")
                for lane in range(info.lanes if many else 1):
                    held = region.claims.holds((info.name, role, lane))
                    if not held and region.state(info.name, role=role, lane=lane) == "attached":
                        region.mark_gone(info.name, role=role, lane=lane)

    # --- the thread --------------------------------------------------------------------------------------------

    def _poke(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while True:
            ready = self._selector.select()
            with self._lock:
                if self._closed:
                    return
                for key, _ in ready:
                    if key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(self._wake)
                    elif isinstance(key.data, Served):
                        self._accept(key.data)
                    else:
                        self._hear(key.data)

    def _accept(self, served: Served) -> None:
        if served.region not in self._served:
            return
        try:
            connection, _ = served.listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(served.peers) >= CONNECTIONS:
            connection.close()
            return
        peer = Peer(served, connection)
        served.peers.add(peer)
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _hear(self, peer: Peer) -> None:
        if peer not in peer.served.peers:
            return
        try:
            packet = wire.receive(peer.connection)
            if packet is None:
                self._drop(peer)
                return
            message, descriptors = packet
            wire.close(descriptors)
            self._answer(peer, message)
        except BlockingIOError:
            # Nothing to read after all; one who doesn't read its answers goes, too.
            return
        except (OSError, wire.WireError, ShmError, TypeError, ValueError, KeyError) as error:
            with contextlib.suppress(OSError):
                wire.send(peer.connection, {"error": f"region {peer.served.region.name}: {error}"})
            self._drop(peer)

    def _answer(self, peer: Peer, message: dict[str, Any]) -> None:
        try:
            if peer.access is None:
                self._welcome(peer, message)
            elif "attach" in message:
                wire.send(peer.connection, self._attach(peer, message["attach"]))
            elif "release" in message:
                channel, role, lane = message["release"]
                done = peer.served.claims.release((channel, role, lane), peer)
                wire.send(peer.connection, {"ok": done})
            else:
                raise wire.WireError("a packet that asks for nothing known")
        except BlockingIOError:
            raise wire.WireError("its answers are not read") from None

    def _welcome(self, peer: Peer, message: dict[str, Any]) -> None:
        region = peer.served.region
        if message.get("hello") != wire.VERSION:
            raise wire.WireError(f"version {message.get('hello')} is not {wire.VERSION}; use the same hostd")
        access = message.get("access")
        if access not in ("rw", "ro"):
            raise wire.WireError("access is 'rw' or 'ro'")
        infos = list(region.channels.values())
        offset = region.size - len(region.data)
        told = {"size": region.size, "data_offset": offset, "channels": len(infos), "bells": len(region.bells)}
        flags = os.O_RDWR if access == "rw" else os.O_RDONLY
        # A descriptor that can't write is what keeps a reader from writing.
        fd = os.open(f"/proc/self/fd/{region.fd}", flags | os.O_CLOEXEC)
        try:
            wire.send(peer.connection, {"ok": told}, [fd])
        finally:
            os.close(fd)
        for at in range(0, len(infos), wire.CHANNELS):
            part = infos[at : at + wire.CHANNELS]
            wire.send(peer.connection, {"channels": [info.as_dict() for info in part]})
        for at in range(0, len(region.bells), wire.DESCRIPTORS):
            bells = region.bells[at : at + wire.DESCRIPTORS]
            wire.send(peer.connection, {"bells": len(bells)}, bells)
        peer.access = access

    @staticmethod
    def _attach(peer: Peer, wanted: Any) -> dict[str, Any]:
        channel, role, lane = wanted
        if not isinstance(channel, str) or not isinstance(role, str) or not isinstance(lane, int | None):
            raise wire.WireError("attach takes a channel, a role and a lane")
        try:
            return {"ok": peer.served.claims.claim(channel, role, lane, peer)}
        except ShmError as error:
            return {"error": str(error)}

    def _drop(self, peer: Peer) -> None:
        peer.served.peers.discard(peer)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(peer.connection)
        peer.connection.close()
        for channel, role, lane in peer.served.claims.release_all(peer):
            with contextlib.suppress(ShmError, OSError):
                peer.served.region.mark_gone(channel, role=role, lane=lane)


def _listen(name: str) -> tuple[socket.socket, Path]:
    """Return a socket that listens under the region's name: whoever owns the region owns the name, too."""
    naming.runtime_dir()
    path = naming.socket_path(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    for attempt in range(10):
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            # By the folder's descriptor: a socket's path may have 107 bytes only.
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path.name, dir_fd=folder)
                listener.bind(f"/proc/self/fd/{folder}/{path.name}")
                os.chmod(path.name, 0o600, dir_fd=folder)
            finally:
                os.close(folder)
            listener.listen(64)
        except FileNotFoundError as error:  # The folder went with the last region of another process.
            if attempt == 9:
                listener.close()
                raise ShmError(f"region {name}: cannot be served at {path}: {error.strerror}") from None
        except OSError as error:
            listener.close()
            raise ShmError(f"region {name}: cannot be served at {path}: {error.strerror}") from None
        else:
            break
    return listener, path


_default: Broker | None = None
_default_pid = 0
_default_lock = threading.Lock()


def default() -> Broker:
    """Return this process's broker, started when it is first needed."""
    global _default, _default_pid
    with _default_lock:
        if _default is None or _default_pid != os.getpid():
            _default, _default_pid = Broker(), os.getpid()
        return _default
