"""What `hostd stats` shows: counters by section, once, or with their rates."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hostd.cli.command import print_columns
from hostd.cluster.sizes import format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hostd.control.client import Client

GAUGES = ("memory", "pages")
"""sections of what there is, not of what has happened: they have no rate"""
PAGES = ("pages_4k", "pages_2m", "pages_1g")
"""of KVM's statistics: pages of each size that it has mapped for the guest"""


def sections(told: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the numbers of a guest by section; of several vCPUs their sums. Histograms are left to --json."""
    vcpus = [vcpu["kvm"] for vcpu in told["vcpus"]]
    vm = {name: value for name, value in told["vm"].items() if isinstance(value, int)}
    return {
        "exits to hostd": _sum([vcpu["exits"] for vcpu in told["vcpus"]]),
        "kvm, vCPUs": _sum([{n: v for n, v in vcpu.items() if isinstance(v, int)} for vcpu in vcpus]),
        "kvm, machine": {name: value for name, value in vm.items() if name not in PAGES},
        "pages": {name: vm[name] for name in PAGES if name in vm},
        "memory": told["memory"],
        "process": told["process"],
    }


def _sum(tables: list[dict[str, int]]) -> dict[str, float]:
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: sum(table.get(name, 0) for table in tables) for name in names}


def show(told: Mapping[str, Any], *, everything: bool) -> None:
    """Print the numbers once."""
    print(_title(told))
    rows = [
        (section, name, _number(section, value))
        for section, numbers in sections(told).items()
        for name, value in numbers.items()
        if value or everything
    ]
    print_columns(("SECTION", "WHAT", "COUNT"), rows, right=(2,))


def watch(client: Client, guest: str, period: float, *, as_json: bool, everything: bool) -> None:
    """Show the numbers and their rates every `period` seconds until Ctrl-C, or until the guest has ended."""
    if as_json:
        for told, rates in _looks(client, guest, period):
            print(json.dumps(dict(told) | {"rates": rates}), flush=True)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        for told, rates in _looks(client, guest, period):
            console.print(_drawn(told, rates, everything))
        return
    with Live(console=console, auto_refresh=False) as live:
        for told, rates in _looks(client, guest, period):
            live.update(_drawn(told, rates, everything), refresh=True)


def _looks(
    client: Client, guest: str, period: float
) -> Iterator[tuple[Mapping[str, Any], dict[str, dict[str, float]]]]:
    before: dict[str, dict[str, float]] = {}
    then = time.monotonic()
    while True:
        told = client.call("statistics", guest=guest)
        now, found = time.monotonic(), sections(told)
        rates = {
            section: {name: (value - before[section].get(name, 0)) / (now - then) for name, value in numbers.items()}
            for section, numbers in found.items()
            if section in before and section not in GAUGES
        }
        yield told, rates
        before, then = found, now
        time.sleep(period)


def _drawn(told: Mapping[str, Any], rates: Mapping[str, Mapping[str, float]], everything: bool) -> RenderableType:
    from rich.table import Table

    table = Table(title=_title(told), title_justify="left", box=None)
    for number, title in enumerate(("section", "what", "count", "per second")):
        table.add_column(title, justify="right" if number > 1 else "left")
    for section, numbers in sections(told).items():
        for name, value in numbers.items():
            if value or everything:
                rate = rates.get(section, {}).get(name)
                table.add_row(section, name, _number(section, value), "" if rate is None else f"{rate:,.1f}")
    return table


def _title(told: Mapping[str, Any]) -> str:
    return f"{told['guest']}: process {told['pid']}, {len(told['vcpus'])} vCPU{'s' * (len(told['vcpus']) > 1)}"


def _number(section: str, value: float) -> str:
    if section == "memory":
        return format_size(int(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
