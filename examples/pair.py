"""Runs in a Linux guest: send numbered messages on one channel while receiving the peer's on another; check all.

python3 pair.py OUT IN COUNT
"""

from __future__ import annotations

import sys
import time
import zlib

import guestlib


def message(number: int) -> bytes:
    """Return the number, padding of a length that depends on it, and a checksum of both."""
    body = number.to_bytes(8, "little") + bytes([number % 251]) * (number % 97)
    return body + zlib.crc32(body).to_bytes(4, "little")


def main(out_name: str, in_name: str, count: int) -> int:
    with guestlib.attach() as link, link.sender(out_name) as out, link.receiver(in_name) as incoming:
        start = time.monotonic()
        for number in range(count):
            out.send(message(number), timeout=60)
            received = incoming.recv(timeout=60)
            if received != message(number):
                print(f"message {number} is wrong: {received!r}")
                return 1
        seconds = time.monotonic() - start
    print(f"{count} messages each way, none lost, reordered or changed, {count / seconds:.0f} a second")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
