"""In a Linux guest: tell COUNT numbers to whoever listens. news.py CHANNEL COUNT"""

import sys

import guestlib

with guestlib.attach() as guest, guest.sender(sys.argv[1]) as news:
    for number in range(int(sys.argv[2])):
        news.send(number.to_bytes(8, "little"))
