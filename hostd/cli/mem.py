"""hostd mem"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hostd.cli.command import print_json

if TYPE_CHECKING:
    from hostd.control.client import Client

EXAMPLES = (
    "hostd mem read tally 0x100000 64",
    "hostd mem read tally --virtual tally 32",
    "hostd mem read tally 0 4MiB --out memory.bin",
    "hostd mem write tally --virtual enough --u32 1",
    "hostd mem search a --text 'Linux version' --limit 3",
)
PIECE = 1 << 20
"""bytes of one request"""
WIDTH = 16
NUMBERS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    read = actions.add_parser("read", help="show memory, or write it to a file of this host")
    write = actions.add_parser("write", help="change memory")
    search = actions.add_parser("search", help="find bytes or text in all slots, or in one")
    for action in (read, write, search):
        action.add_argument("guest", metavar="GUEST", help="GUEST or CLUSTER/GUEST; it runs on")
    for action in (read, write):
        action.add_argument("address", metavar="ADDRESS", help="in the guest: a number, or a symbol's name")
        action.add_argument("--virtual", action="store_true", help="by the page tables of vCPU 0 (default: physical)")
    read.add_argument("size", metavar="SIZE", nargs="?", default="256", help="such as 64 or 4KiB (default: 256)")
    read.add_argument("--out", type=Path, metavar="FILE", help="write the bytes there")
    for action in (write, search):
        what = action.add_mutually_exclusive_group(required=True)
        what.add_argument("--hex", metavar="BYTES", help="such as 'de ad be ef'")
        what.add_argument("--text", metavar="TEXT", help="as UTF-8")
        what.add_argument("--file", type=Path, metavar="FILE", help="what a file holds")
        for name, size in NUMBERS.items():
            what.add_argument(f"--{name}", metavar="N", help=f"a number of {size} bytes, little-endian")
    search.add_argument("--slot", metavar="NAME", help="only there, as `hostd slots` names it")
    search.add_argument("--limit", type=int, default=100, metavar="N", help="matches at most (default: 100)")
    for action in actions.choices.values():
        # Where --json stands before the action, it counts as well.
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    from hostd.cli.targets import find_guest

    client, guest = find_guest(options.guest)
    with client:
        code: int = globals()[f"_{options.action}"](client, guest, options)
    return code


def _read(client: Client, guest: str, options: argparse.Namespace) -> int:
    address, size = _address(client, guest, options.address), _size(options.size)
    data = b"".join(
        _piece(client, guest, address + at, min(PIECE, size - at), virtual=options.virtual)
        for at in range(0, size, PIECE)
    )
    if options.out is not None:
        options.out.write_bytes(data)
    if options.json:
        told = {"guest": guest, "address": address, "virtual": options.virtual, "size": size}
        print_json(told | ({"data": data} if options.out is None else {"file": str(options.out)}))
    elif options.out is not None:
        print(f"{options.out}: {size} bytes of {guest} from {address:#x} on")
    else:
        sys.stdout.writelines(f"{line}\n" for line in hexdump(address, data))
    return 0


def _write(client: Client, guest: str, options: argparse.Namespace) -> int:
    address, data = _address(client, guest, options.address), _bytes(options)
    for at in range(0, len(data), PIECE):
        piece = data[at : at + PIECE]
        client.call("write", guest=guest, address=address + at, data=piece, virtual=options.virtual)
    if options.json:
        print_json({"guest": guest, "address": address, "virtual": options.virtual, "size": len(data)})
    else:
        print(f"{guest}: {len(data)} bytes written at {address:#x}")
    return 0


def _search(client: Client, guest: str, options: argparse.Namespace) -> int:
    from hostd.gdb.searching import search

    pattern = _bytes(options)
    matches = search(client, guest, pattern, slot=options.slot, limit=options.limit)
    if options.json:
        print_json({"guest": guest, "pattern": pattern, "matches": matches})
        return 0 if matches else 1
    for address in matches:
        start = address // WIDTH * WIDTH
        for line in hexdump(start, _piece(client, guest, start, WIDTH, virtual=False)):
            print(f"{address:#x}: {line}")
    if not matches:
        print(f"{guest}: nothing found", file=sys.stderr)
    elif len(matches) == options.limit:
        print(f"the first {options.limit}; --limit says how many", file=sys.stderr)
    return 0 if matches else 1


def _piece(client: Client, guest: str, address: int, size: int, *, virtual: bool) -> bytes:
    where = {"address": address} if virtual else {"gpa": address}
    data: bytes = client.call("read_virtual" if virtual else "read", guest=guest, size=size, **where)
    return data


def _address(client: Client, guest: str, text: str) -> int:
    """Return the number, or the symbol's address, that `text` stands for."""
    from hostd.gdb.linux_symbols import symbols_of
    from hostd.gdb.symbols import address_of
    from hostd.supervisor.errors import SupervisorError

    try:
        address = int(text, 0)
    except ValueError:
        file = symbols_of(Path(client.call("inspect", guests=[guest])["guests"][guest]["image"]))
        found = None if file is None else address_of(file, text)
        if found is None:
            raise SupervisorError(
                f"{text!r} is no address and no symbol of {guest}; write a number such as 0x100000"
            ) from None
        return found
    if not 0 <= address < 1 << 64:
        raise SupervisorError(f"{text} is no address: they have 64 bits")
    return address


def _size(text: str) -> int:
    from hostd.cluster.sizes import parse_size
    from hostd.supervisor.errors import SupervisorError

    try:
        return parse_size(text)
    except ValueError as error:
        raise SupervisorError(str(error)) from None


def _bytes(options: argparse.Namespace) -> bytes:
    """Return what is to be written or looked for."""
    from hostd.supervisor.errors import SupervisorError

    if options.text is not None:
        return str(options.text).encode()
    if options.file is not None:
        return bytes(options.file.read_bytes())
    try:
        if options.hex is not None:
            return bytes.fromhex(options.hex)
        [(text, size)] = [(value, size) for name, size in NUMBERS.items() if (value := getattr(options, name))]
        number = int(text, 0)
        return number.to_bytes(size, "little", signed=number < 0)
    except (ValueError, OverflowError):
        given = options.hex or next(value for name in NUMBERS if (value := getattr(options, name)) is not None)
        raise SupervisorError(
            f"{given!r} is not what was asked for: hex digits in pairs, or a number that fits"
        ) from None


def hexdump(address: int, data: bytes) -> list[str]:
    """Return the lines of a dump: address, hex, text; lines like the one before are a *."""
    lines: list[str] = []
    last = None
    for at in range(0, len(data), WIDTH):
        row = data[at : at + WIDTH]
        if row == last and at + WIDTH < len(data):
            if lines[-1] != "*":
                lines.append("*")
            continue
        last = row
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{address + at:016x}  {row[:8].hex(' '):23}  {row[8:].hex(' '):23}  |{text}|")
    return lines
