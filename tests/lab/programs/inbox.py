"""In a Linux guest: receive from three senders on one channel and check that each one's numbers are in order.

inbox.py CHANNEL COUNT
"""

import struct
import sys

import guestlib

channel, count = sys.argv[1], int(sys.argv[2])
due = {}
with guestlib.attach(uio=True) as guest, guest.receiver(channel) as inbox:
    while len(due) < 3 or min(due.values()) < count:
        number, who = struct.unpack("<Q8s", inbox.recv(timeout=120))
        lane, name = inbox.sender_lane, who.rstrip(b"\0").decode()
        if number != due.get((lane, name), 0):
            sys.exit(f"{name}, lane {lane}: {number} where {due.get((lane, name), 0)} was due")
        due[lane, name] = number + 1
print(sorted(name for _, name in due), inbox.lost)
