"""Ports of the kernel and the offloads in software, without a switch: harness.c, compiled and called."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cffi import FFI

import net

HARNESS = Path(__file__).parent / "kernel_ports" / "harness.c"
SOURCE = Path(net.__file__).parent / "src"
PARTS = ("frame", "faults", "offload", "kernel_frame", "tap_port", "packet_port")
FRAME_MAX = 65535 + 18
PIECES = 20
BATCH = 64

TAKES_CSUM, TAKES_TSO4, TAKES_TSO6, TAKES_USO = 8, 16, 32, 64
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
E_DEVICE = -6
DROPS = ("none", "runt", "oversize", "spoofed", "isolated", "rate", "offload", "full", "down", "unfit")

ffi = FFI()
ffi.cdef(
    """
    struct offload { uint8_t flags, gso_type; uint16_t hdr_len, gso_size, csum_start, csum_offset, buffers; };
    struct packed_frame { uint32_t size; struct offload offload; uint8_t bytes[65553]; };
    struct port_counters {
        uint64_t frames_in, bytes_in, frames_out, bytes_out, drops[10], wakes, missed;
    };
    struct port {
        const void *ops; char name[64]; uint32_t id, flags; uint8_t mac[6]; uint8_t up, quarantined; const char *field;
        int wake; uint64_t rate, burst, tokens, refilled; uint32_t max_frame; uint8_t touched;
        struct port_counters counters;
    };
    int harness_offload(const struct packed_frame *from, const uint32_t *cuts, uint32_t cut_count, uint32_t flags,
                        uint32_t max_frame, struct packed_frame *to, uint32_t room, int answer, uint32_t *count);
    int harness_send(struct port *port, const struct packed_frame *from, const uint32_t *cuts, uint32_t cut_count);
    int harness_send_gone(struct port *port, const struct packed_frame *from);
    int harness_look(struct port *port, struct packed_frame *to, int room);
    int harness_wait(struct port *port, int timeout_ms);
    struct port *harness_open(const char *kind, const char *interface, int *error);
    void harness_close(struct port *port);
    """
)


@dataclass(frozen=True)
class Offload:
    """What a frame's sender left undone (struct virtio_net_hdr_v1)."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0


@dataclass(frozen=True)
class Frame:
    """A frame's bytes, and what is undone of it."""

    data: bytes
    offload: Offload = field(default_factory=Offload)


def compile_harness(source: Path, target: Path, *flags: str) -> None:
    """Compile `source` with the parts of the switch that it needs."""
    command = ["gcc", "-std=gnu11", "-O1", "-g", *flags, "-Wall", "-Wextra", "-Werror", f"-I{SOURCE}", str(source)]
    command += [str(SOURCE / f"{part}.c") for part in PARTS]
    subprocess.run([*command, "-o", str(target)], check=True, timeout=100)


@functools.cache
def load() -> Any:
    """Compile the harness and load it."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "harness.so")
        flags = ["-shared", "-fPIC", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
        compile_harness(HARNESS, target, *flags)
        return ffi.dlopen(str(target))


class Harness:
    """The compiled harness."""

    def __init__(self) -> None:
        self.lib = load()

    def offload(
        self,
        frame: Frame,
        *,
        cuts: Sequence[int] = (),
        flags: int = 0,
        max_frame: int = FRAME_MAX,
        room: int = 1400,
        answer: int = 0,
    ) -> tuple[int, list[Frame]]:
        """Finish a frame for a port with `flags`; return what offload_send returned, and the frames sent."""
        to, count = ffi.new("struct packed_frame[]", room), ffi.new("uint32_t *")
        result = self.lib.harness_offload(
            pack(frame), ffi.new("uint32_t[]", list(cuts)), len(cuts), flags, max_frame, to, room, answer, count
        )
        return result, [unpack(to[index]) for index in range(count[0])]

    def open(self, kind: str, interface: str) -> Port:
        """Open a port in the calling thread's network namespace. Raises OSError."""
        error = ffi.new("int *")
        port = self.lib.harness_open(kind.encode(), interface.encode(), error)
        if not port:
            raise OSError(error[0], os.strerror(error[0]))
        return Port(self.lib, port)


class Port:
    """One port, to be closed."""

    def __init__(self, lib: Any, port: Any) -> None:
        self._lib = lib
        self.port = port
        self._frames = ffi.new("struct packed_frame[]", BATCH)

    def __enter__(self) -> Port:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.harness_close(self.port)

    def send(self, frame: Frame, cuts: Sequence[int] = ()) -> int:
        """Send a frame from pieces cut at `cuts`; return what the port said."""
        return int(self._lib.harness_send(self.port, pack(frame), ffi.new("uint32_t[]", list(cuts)), len(cuts)))

    def send_gone(self, frame: Frame) -> int:
        """Send a frame from memory that ends 100 bytes behind its beginning, guarded."""
        return int(self._lib.harness_send_gone(self.port, pack(frame)))

    def look(self, room: int = BATCH) -> list[Frame] | int:
        """Return the frames of one look, or -error."""
        count = self._lib.harness_look(self.port, self._frames, room)
        return count if count < 0 else [unpack(self._frames[index]) for index in range(count)]

    def wait(self, timeout_ms: int = 2000) -> bool:
        """Sleep as the switch does, until there may be something."""
        return bool(self._lib.harness_wait(self.port, timeout_ms))

    def receive(self, count: int = 1, timeout_ms: int = 2000) -> list[Frame]:
        """Return `count` frames, or what came before nothing did for so long."""
        got: list[Frame] = []
        while len(got) < count and self.wait(timeout_ms):
            looked = self.look()
            assert isinstance(looked, list), looked
            got += looked
        return got

    @property
    def drops(self) -> dict[str, int]:
        """Return the reasons that were counted."""
        counted = self.port.counters.drops
        return {reason: counted[index] for index, reason in enumerate(DROPS) if counted[index]}


def pack(frame: Frame) -> Any:
    """Return the harness's struct of a frame."""
    to, what = ffi.new("struct packed_frame *"), frame.offload
    to.size = len(frame.data)
    ffi.buffer(to.bytes)[0 : len(frame.data)] = frame.data
    to.offload = (what.flags, what.gso_type, what.hdr_len, what.gso_size, what.csum_start, what.csum_offset, 0)
    return to


def unpack(packed: Any) -> Frame:
    """Return the frame of a struct of the harness."""
    what = packed.offload
    numbers = (what.flags, what.gso_type, what.hdr_len, what.gso_size, what.csum_start, what.csum_offset)
    return Frame(bytes(ffi.buffer(packed.bytes)[0 : packed.size]), Offload(*numbers))
