"""MAC addresses on the command line."""

from __future__ import annotations

import argparse
import re

PATTERN = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def mac_address(text: str) -> bytes:
    """Return the bytes of an address written as 02:00:00:00:00:01."""
    if not PATTERN.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no MAC address; write six bytes such as 02:00:00:00:00:01")
    return bytes.fromhex(text.replace(":", ""))
