"""In a guest of linux-network.toml: ask a guest by name, answer, or find that there is no way.

network.py ask NAME COUNT | answer COUNT | miss NAME ADDRESS
"""

from __future__ import annotations

import socket
import sys
import time

PORT = 7
LIMIT = 300.0
"""seconds until the other guest has booted, wherever processors are emulated"""


def ask(name: str, count: int) -> None:
    """Send numbers until each has come back, turned round."""
    address = socket.gethostbyname(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(0.2)
        start, number, lost = time.monotonic(), 0, 0
        while number < count:
            assert time.monotonic() - start < LIMIT, f"{name} does not answer"
            try:
                link.sendto(b"%d" % number, (address, PORT))
                while link.recv(100) != (b"%d" % number)[::-1]:
                    pass
                number += 1
            except OSError:  # Nobody there yet, or a frame was lost.
                lost += number > 0
    print(f"{name} ({address}) answered {count} times; {lost} were lost")


def answer(count: int) -> None:
    """Send `count` different datagrams back, turned round; and for a second more, should the last answer be lost."""
    seen: set[bytes] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.bind(("", PORT))
        link.settimeout(LIMIT)
        while True:
            try:
                data, peer = link.recvfrom(100)
            except TimeoutError:
                break
            link.sendto(data[::-1], peer)
            seen.add(data)
            if len(seen) == count:
                link.settimeout(1)
    assert len(seen) == count, f"{len(seen)} of {count} came"
    print(f"answered {count}")


def miss(name: str, address: str) -> None:
    """Find that `name` means nothing here, and that there is no way to its address."""
    try:
        socket.gethostbyname(name)
    except socket.gaierror:
        pass
    else:
        sys.exit(f"{name} has an address here")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        try:
            link.sendto(b"1", (address, PORT))
        except OSError as error:
            print(f"{address}: {error.strerror}")
        else:
            sys.exit(f"there is a way to {address}")


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    if role == "ask":
        ask(words[0], int(words[1]))
    elif role == "answer":
        answer(int(words[0]))
    else:
        miss(*words)
