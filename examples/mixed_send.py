"""Runs in the Linux guest `linux` of mixed.toml: send so many numbered messages to the collector."""

from __future__ import annotations

import struct
import sys

import guestlib

with guestlib.attach() as link, link.sender("inbox") as inbox:
    for number in range(int(sys.argv[1])):
        inbox.send(struct.pack("<16sQ", b"linux", number), timeout=60)
