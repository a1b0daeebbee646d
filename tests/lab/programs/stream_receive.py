"""In a Linux guest: receive what stream_send.py sends, check every message. stream_receive.py CHANNEL sleeping|polling

Prints how it ended, how many came, the ms between the last message and the end, and the end's counters.
"""

import sys
import time
import zlib

import guestlib
import shm

channel, mode = sys.argv[1], sys.argv[2]
with guestlib.attach(uio=mode == "sleeping") as guest, guest.receiver(channel) as receiver:
    if mode == "sleeping":
        receiver.spin_ns = 0
    due, last = 0, time.monotonic()
    try:
        while True:
            for message in receiver.recv_many(256, timeout=120):
                head = message[:8]
                if int.from_bytes(head, "little") != due or message[8:] != zlib.crc32(head).to_bytes(4, "little"):
                    sys.exit(f"message {due} is wrong: {message!r}")
                due += 1
            last = time.monotonic()
    except shm.ChannelClosed:
        end = "closed"
    except shm.PeerGone:
        end = "gone"
    passed = 1000 * (time.monotonic() - last)
    print(end, due, f"{passed:.0f}", receiver.sleeps, receiver.rings, receiver.late)
