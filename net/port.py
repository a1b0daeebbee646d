"""A process of this host as a port of a network: frames in and out of Python.

with net.attach("cluster/lan", name="probe") as port:
    port.send(frame)                    # destination, source, type, payload: bytes
    answer = port.recv(timeout=1)

The port's rings lie in memory that this process makes and hands to the switch (docs/network.md, "Host processes"). When
the process closes the port or dies, the port goes away, and the memory too; when the switch is killed and started
again, the port joins it again, with the frames that are still in its rings.
"""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import shm
from net import naming, requests
from net.client import Client, ConnectionLostError
from net.errors import NetError, PortGone, PortTimeout

HEADER = 14
"""bytes of an Ethernet header: the shortest frame"""
TAGGED_HEADER = 18
FRAME_MAX = 65535 + TAGGED_HEADER
RING_SIZE, RING_FRAMES = 256 << 10, 16
"""each ring has so many bytes, or room for so many of the longest frames if that is more"""
LOOK = 0.1
"""seconds after which one who waits looks whether the port is still one"""
RETRY = 0.02
"""seconds between two tries to join the next switch"""
PATIENCE = 5.0
"""seconds that another switch has to come up after one that was killed"""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Offload:
    """What a frame's sender left undone (struct virtio_net_hdr_v1; virtio 1.2, 5.1.6.2). Sizes in bytes."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    LAYOUT: ClassVar = struct.Struct("<BBHHHHH")

    def pack(self) -> bytes:
        """Return the 12 bytes before a frame."""
        return self.LAYOUT.pack(*astuple(self), 0)

    @classmethod
    def unpack(cls, data: bytes) -> Offload:
        """Read the 12 bytes before a frame."""
        return cls(*cls.LAYOUT.unpack_from(data)[:6])


DONE = Offload()
"""nothing was left undone"""
_DONE = DONE.pack()
OFFLOAD = len(_DONE)


@dataclass(frozen=True)
class Frame:
    """A frame as it came, and what is undone of it."""

    data: bytes
    offload: Offload = field(default=DONE)


def attach(
    network: str,
    *,
    name: str,
    mac: bytes | None = None,
    isolated: bool = False,
    rate: int = 0,
    offloads: bool = False,
    size: int = 0,
    patience: float = PATIENCE,
) -> HostPort:
    """Join `network` (CLUSTER/NETWORK) as its port `name`. Raises NetError.

    `mac`: the only address that frames are sent from; if None, any. `isolated`: exchange frames with uplinks only.
    `rate`: bytes a second into the switch (0: no limit). `offloads`: frames may be sent, and come, with checksum and
    segmentation undone. `size`: bytes of each ring (0: enough). `patience`: seconds to wait for a switch that is
    started anew.
    """
    options = {"mac": mac, "isolated": isolated, "rate": rate, "offloads": offloads}
    return HostPort(network, name, options, size, patience)


class HostPort:
    """A port that this process is. One thread's at a time for each direction. A context manager.

    A thread of its own waits for the switch's end, and joins the next one.

    `mac`: the port's address; if none was given, a random one that nobody holds it to. `mtu`: the network's, in bytes.
    All calls raise NetError: PortTimeout when the time limit (seconds; None: none) passes, PortGone when the port was
    removed, or no switch came in the place of one that ended.
    """

    def __init__(self, network: str, name: str, options: dict[str, Any], size: int, patience: float) -> None:
        self.network = network
        self.name = naming.check_port(name)
        self.mac: bytes = options["mac"] or bytes([os.urandom(1)[0] & 0xFC | 0x02]) + os.urandom(5)
        self._parts = naming.split(network)
        self._options = options
        self._patience = patience
        self._gone: PortGone | None = None
        """why it is no longer a port"""
        self._talk = threading.Lock()
        """held by who uses the connection"""
        self._closed = False
        self._client = Client.connect(*self._parts)
        self.mtu: int = self._client.hello["mtu"]
        try:
            self._region = self._make(size)
        except BaseException:
            self._client.close()
            raise
        try:
            self._out, self._in = self._region.sender("out"), self._region.receiver("in")
            self._add()
        except BaseException:
            self._client.close()
            self._region.close()
            raise
        self._ended = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._stay, name=f"port-{name}", daemon=True)
        self._thread.start()

    def _make(self, size: int) -> shm.Region:
        longest = OFFLOAD + (FRAME_MAX if self._options["offloads"] else self.mtu + TAGGED_HEADER)
        size = size or max(RING_SIZE, RING_FRAMES * longest)
        rings = [shm.ChannelSpec(way, size=size, max_message=longest) for way in ("out", "in")]
        name = naming.region_name(*self._parts, self.name)
        try:
            return shm.Region.create(name, channels=rings, backing="memfd", serve=False)
        except shm.ShmError as error:
            raise NetError(f"{self._where}: {error}") from None

    def _add(self) -> None:
        self._client.call(requests.add_ring(self.name, self._region, hold=True, **self._options))

    # --- frames ------------------------------------------------------------------------------------------------

    def send(self, frame: bytes, timeout: float | None = None, *, offload: Offload = DONE) -> None:
        """Send a frame, of 14 bytes at least; wait while the ring is full."""
        if not HEADER <= len(frame) <= self._out.info.max_message - OFFLOAD:
            raise NetError(
                f"{self._where}: a frame of {len(frame)} bytes can't be; the network's MTU of {self.mtu} allows "
                f"{HEADER} to {self._out.info.max_message - OFFLOAD}"
            )
        message = (_DONE if offload is DONE else offload.pack()) + frame
        self._patiently(lambda left: self._out.send(message, left), timeout)

    def send_many(self, frames: Iterable[bytes], timeout: float | None = None) -> int:
        """Send frames, each with the time limit; return how many."""
        count = 0
        for frame in frames:
            self.send(frame, timeout)
            count += 1
        return count

    def recv(self, timeout: float | None = None) -> bytes:
        """Receive the next frame."""
        return self._patiently(self._in.recv, timeout)[OFFLOAD:]

    def recv_frame(self, timeout: float | None = None) -> Frame:
        """Receive the next frame with what is undone of it; without `offloads` that is never anything."""
        message = self._patiently(self._in.recv, timeout)
        return Frame(message[OFFLOAD:], Offload.unpack(message))

    def recv_many(self, count: int = 1024, timeout: float | None = None) -> list[bytes]:
        """Wait for a frame and receive it with what else is there, up to `count`."""
        messages = self._patiently(lambda left: self._in.recv_many(count, left), timeout)
        return [message[OFFLOAD:] for message in messages]

    # --- the switch --------------------------------------------------------------------------------------------

    def show(self) -> dict[str, Any]:
        """Return what the switch knows of this port: state, counters."""
        with self._talk:
            self._check()
            found = self._find()
        if found is None:
            raise self._removed()
        return found

    def _find(self) -> dict[str, Any] | None:
        ports: list[dict[str, Any]] = self._client.call(requests.show())["ports"]
        return next((port for port in ports if port["name"] == self.name), None)

    def _check(self) -> None:
        if self._gone is not None:
            raise self._gone

    def _patiently(self, call: Callable[[float], Result], timeout: float | None) -> Result:
        """Return what `call` does within a time limit, which gets slices of it."""
        self._check()
        deadline = None if timeout is None else time.monotonic() + timeout
        left = LOOK if timeout is None else min(LOOK, max(0.0, timeout))
        while True:
            try:
                return call(left)
            except (shm.ChannelTimeout, shm.ChannelFull):
                self._check()
            except (shm.ChannelClosed, shm.PeerGone):
                self._check_removed()
                time.sleep(RETRY)
            except shm.ShmError as error:
                self._check()
                raise NetError(f"{self._where}: {error}") from None
            if deadline is not None:
                left = min(LOOK, deadline - time.monotonic())
                if left <= 0:
                    raise PortTimeout(f"{self._where}: the time limit passed") from None

    def _check_removed(self) -> None:
        """The switch has let go of the rings: it has ended, and another one may come, or the port was removed."""
        self._check()
        if not self._talk.acquire(timeout=RETRY):  # The thread is joining the next switch.
            return
        try:
            found = self._find()
        except ConnectionLostError:
            return
        finally:
            self._talk.release()
        if found is None:
            raise self._removed()

    # --- the thread --------------------------------------------------------------------------------------------

    def _stay(self) -> None:
        """Stay a port until it is closed, or no switch comes any more."""
        while self._gone is None:
            watched = select.poll()
            watched.register(self._ended, select.POLLIN)
            watched.register(self._client.fileno(), select.POLLIN)
            watched.poll()
            with self._talk:  # Else it was an answer, and is taken by now.
                if self._gone is None and not self._client.alive:
                    self._rejoin()

    def _rejoin(self) -> None:
        """Join the switch that comes in the place of the one that ended."""
        self._client.close()
        deadline = time.monotonic() + self._patience
        while self._gone is None:
            try:
                self._client = Client.connect(*self._parts)
                self._add()
                return
            except ConnectionLostError:
                if time.monotonic() >= deadline:
                    self._gone = PortGone(f"{self._where}: the switch ended, and none came in its place")
            except NetError as error:
                self._gone = PortGone(str(error))
            time.sleep(RETRY)

    @property
    def _where(self) -> str:
        return f"port {self.name} of {self.network}"

    def _removed(self) -> PortGone:
        return PortGone(f"{self._where} was removed from its switch")

    def close(self) -> None:
        """Leave the network. A second time does nothing."""
        if self._closed:
            return
        self._closed = True
        self._gone = self._gone or PortGone(f"{self._where} is closed")
        os.eventfd_write(self._ended, 1)
        self._thread.join()
        os.close(self._ended)
        self._client.close()
        self._region.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<HostPort {self.name} of {self.network}{' closed' * self._closed}>"
