"""In a network namespace of its own: make interfaces, run a program, and print what became of them, as JSON.

Standard input: {"interfaces": {name: MAC}, "program": [...], "macs": whether MACs are told}. They are taps that nobody
serves: like a guest's devices, down and without an address.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

from pyroute2 import IPRoute

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def main() -> None:
    """Do it."""
    order = json.load(sys.stdin)
    flags = CLONE_NEWNET | (0 if os.geteuid() == 0 else CLONE_NEWUSER)
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    with IPRoute() as links:
        for name, mac in order["interfaces"].items():
            links.link("add", ifname=name, kind="tuntap", mode="tap")
            links.link("set", index=links.link_lookup(ifname=name)[0], address=mac)
        done = subprocess.run(order["program"], capture_output=True, text=True, check=False)
        found = {
            link.get("ifname"): {
                "up": bool(link["flags"] & 1),
                "mtu": link.get("mtu"),
                **({"mac": link.get("address")} if order.get("macs") else {}),
                "addresses": [
                    [address.get("address"), address["prefixlen"], address.get("broadcast")]
                    for address in links.get_addr(index=link["index"], family=2)
                ],
            }
            for link in links.get_links()
            if link.get("ifname") in order["interfaces"]
        }
        gateways = [route.get("gateway") for route in links.get_default_routes(family=2)]
    said = {"status": done.returncode, "output": done.stdout + done.stderr, "interfaces": found, "gateways": gateways}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
