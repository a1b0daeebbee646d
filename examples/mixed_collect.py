"""Runs in the guest `collector` of mixed.toml: receive from every sender, check that each one counts without a gap.

python3 collect.py SENDERS COUNT
"""

from __future__ import annotations

import struct
import sys
from collections import Counter

import guestlib

senders, count = int(sys.argv[1]), int(sys.argv[2])
seen: Counter[str] = Counter()
with guestlib.attach() as link, link.receiver("inbox") as inbox:
    while sum(seen.values()) < senders * count:
        sender, number = struct.unpack("<16sQ", inbox.recv(timeout=60))
        name = sender.rstrip(b"\0").decode()
        if number != seen[name]:
            sys.exit(f"{name} sent {number}, but {seen[name]} was next")
        seen[name] += 1
print(", ".join(f"{number} from {name}" for name, number in sorted(seen.items())))
