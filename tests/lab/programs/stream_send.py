"""In a Linux guest: send numbered messages with checksums. stream_send.py CHANNEL COUNT sleeping|polling [PAUSE_S]"""

import sys
import time
import zlib

import guestlib

channel, count, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
pause = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
with guestlib.attach(uio=mode == "sleeping") as guest, guest.sender(channel) as sender:
    if mode == "sleeping":
        sender.spin_ns = 0
    print("ready", flush=True)
    for number in range(count):
        head = number.to_bytes(8, "little")
        sender.send(head + zlib.crc32(head).to_bytes(4, "little"), timeout=120)
        if pause:
            time.sleep(pause)
    print(sender.sleeps, sender.rings, sender.late)
