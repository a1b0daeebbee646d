"""What `hostd net show` shows: a switch's ports, what they count, and the addresses it has learnt."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hostd.cli.command import print_columns

if TYPE_CHECKING:
    from rich.console import RenderableType

PERIOD = 1.0
"""seconds between two looks of --watch"""
SHOWN_ADDRESSES = 32
"""of more, a live display shows those heard last"""


def look(network: str) -> dict[str, Any]:
    """Return all that a network's switch tells. Raises NetError."""
    from net import naming, requests
    from net.client import Client

    with Client.connect(*naming.split(network)) as client:
        found: dict[str, Any] = client.call(requests.show())
    for address in found["addresses"]:
        address["mac"] = address["mac"].hex(":")
    for port in found["ports"]:
        port["mac"] = None if port["mac"] is None else port["mac"].hex(":")
    return found


def show(found: dict[str, Any]) -> None:
    """Print what `look` found, once."""
    print(_title(found))
    print_columns(*_ports(found), right=range(4, 8))
    print()
    if found["addresses"]:
        print_columns(*_addresses(found), right=(3,))
    else:
        print("no address has been learnt")


def _title(found: dict[str, Any]) -> str:
    captures = f", {len(found['captures'])} captures" if found["captures"] else ""
    return f"{found['cluster']}/{found['network']}: MTU {found['mtu']}, switch process {found['pid']}{captures}"


def _ports(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["PORT", "KIND", "STATE", "OPTIONS", "FRAMES IN", "BYTES IN", "FRAMES OUT", "BYTES OUT", "DROPS AND ERRORS"]
    rows = []
    for port in found["ports"]:
        counters = port["counters"]
        numbers = [f"{counters[key]:,}" for key in ("frames_in", "bytes_in", "frames_out", "bytes_out")]
        rows.append([port["name"], port["kind"], _state(port), _words(port), *numbers, _troubles(port)])
    return head, rows


def _state(port: dict[str, Any]) -> str:
    if port["quarantined"]:
        return "quarantined"
    front = port["front"]
    if front is not None and not front["connected"]:
        return "waiting"
    return "up" if port["up"] else "down"


def _words(port: dict[str, Any]) -> str:
    """Return a port's options: those that are not as usual."""
    words = [word for word in ("uplink", "isolated", "attached") if port[word]]
    words += [port["mac"]] if port["mac"] else []
    words += [f"{port['rate']:,} B/s"] if port["rate"] else []
    return " ".join(words)


def _troubles(port: dict[str, Any]) -> str:
    """Return what went wrong, by reason: why the port is quarantined, frames dropped, front ends thrown out."""
    counters, front, field = port["counters"], port["front"], port["field"]
    troubles = [f"{port['quarantined']}{f' ({field})' if field else ''}"] if port["quarantined"] else []
    troubles += [f"{count:,} {reason}" for reason, count in counters["drops"].items() if count]
    troubles += [f"{counters['missed']:,} missed"] if counters["missed"] else []
    troubles += [f"{count:,} thrown out for {reason}" for reason, count in front["errors"].items()] if front else []
    return ", ".join(troubles)


def _addresses(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [address["mac"], str(address["vlan"] or ""), address["port"] or "?", _age(address["age"])]
        for address in sorted(found["addresses"], key=lambda address: address["age"])
    ]
    return ["ADDRESS", "VLAN", "PORT", "AGE"], rows


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds else "its own"


def watch(network: str, *, as_json: bool) -> None:
    """Show it every second: drawn over itself on a terminal, else one after the other. Raises NetError."""
    if as_json:
        for found, rates in _looks(network):
            print(json.dumps(found | {"rates": rates}), flush=True)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        for found, rates in _looks(network):
            console.print(_drawn(found, rates))
        return
    with Live(console=console, auto_refresh=False) as live:
        for found, rates in _looks(network):
            live.update(_drawn(found, rates), refresh=True)


def _looks(network: str) -> Iterator[tuple[dict[str, Any], dict[str, dict[str, float]]]]:
    """Yield what a network's switch tells, and each port's frames and bytes a second since the last look."""
    before: dict[int, dict[str, Any]] = {}
    then = time.monotonic()
    while True:
        found = look(network)
        now = time.monotonic()
        yield found, {port["name"]: _rates(port, before.get(port["id"]), now - then) for port in found["ports"]}
        before, then = {port["id"]: port for port in found["ports"]}, now
        time.sleep(PERIOD)


def _rates(port: dict[str, Any], before: dict[str, Any] | None, seconds: float) -> dict[str, float]:
    keys = ("frames_in", "bytes_in", "frames_out", "bytes_out")
    if before is None:
        return dict.fromkeys(keys, 0.0)
    return {key: (port["counters"][key] - before["counters"][key]) / seconds for key in keys}


def _drawn(found: dict[str, Any], rates: dict[str, dict[str, float]]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    ports = Table(title=_title(found), title_justify="left", box=None)
    heads = ("port", "kind", "state", "options", "in/s", "in", "out/s", "out", "drops and errors")
    for number, title in enumerate(heads):
        ports.add_column(title, justify="right" if 4 <= number < 8 else "left")
    for port in found["ports"]:
        rate = rates[port["name"]]
        flows = [
            text
            for way in ("in", "out")
            for text in (f"{rate[f'frames_{way}']:,.0f}", f"{rate[f'bytes_{way}'] * 8 / 1e6:,.1f} Mbit/s")
        ]
        ports.add_row(port["name"], port["kind"], _state(port), _words(port), *flows, _troubles(port))
    addresses = Table(box=None)
    head, rows = _addresses(found)
    for title in head:
        addresses.add_column(title.lower())
    for cells in rows[:SHOWN_ADDRESSES]:
        addresses.add_row(*cells)
    if len(rows) > SHOWN_ADDRESSES:
        addresses.add_row(f"and {len(rows) - SHOWN_ADDRESSES} more")
    return Group(ports, "", addresses)
