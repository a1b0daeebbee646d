"""KVM's binary statistics of a VM or vCPU (Linux, Documentation/virt/kvm/api.rst, 4.133 KVM_GET_STATS_FD)."""

from __future__ import annotations

import os
import struct

HEADER = struct.Struct("<6I")  # flags, name size, descriptors, id offset, descriptor offset, data offset
DESCRIPTOR = struct.Struct("<IhHII")  # flags, exponent, values, offset, bucket size; the name follows


def read_stats(fd: int) -> dict[str, int | list[int]]:
    """Return every statistic behind the descriptor `fd` by name; histograms are lists. Raises OSError."""
    header = os.pread(fd, HEADER.size, 0)
    _flags, name_size, count, _id, descriptors_at, data_at = HEADER.unpack(header)
    step = DESCRIPTOR.size + name_size
    descriptors = os.pread(fd, step * count, descriptors_at)
    wanted: list[tuple[str, int, int]] = []
    end = 0
    for at in range(0, len(descriptors) - step + 1, step):
        _kind, _exponent, values, offset, _bucket = DESCRIPTOR.unpack_from(descriptors, at)
        name = descriptors[at + DESCRIPTOR.size : at + step].split(b"\0")[0].decode()
        wanted.append((name, offset, values))
        end = max(end, offset + 8 * values)
    data = os.pread(fd, end, data_at)
    found: dict[str, int | list[int]] = {}
    for name, offset, values in wanted:
        numbers = list(struct.unpack_from(f"<{values}Q", data, offset))
        found[name] = numbers[0] if values == 1 else numbers
    return found
