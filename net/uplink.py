"""What a network's uplink needs of the host: link, MTU, address, route and NAT; and all of it taken away again.

The port itself is C (tap_port.c, packet_port.c) and is made first: inside `net.namespaces.inside(plan.namespace)`, by
the process that `set_up` is then called for. Its death takes a tap with it; what else was changed is found by the
record of it and undone by `sweep`, or by the next `set_up` of the same network. All calls block, for some
milliseconds; they may be called where an event loop runs.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, ip_interface
from pathlib import Path
from typing import Any, TypeVar

from net import nat, uplink_records
from net.errors import NetError
from net.namespaces import NAMED, OWN, inside, namespace_path
from net.uplink_records import Record

T = TypeVar("T")
SYSCTLS = Path("/proc/sys")
LINK = 253
"""scope of a route to what is on the link itself (RT_SCOPE_LINK)"""


@dataclass(frozen=True)
class UplinkPlan:
    """What an uplink should be."""

    network: str
    """"cluster/network\""""
    kind: str
    """"tap", made by the switch for this network alone, or "packet", on an interface that is there"""
    interface: str
    mtu: int = 1500
    """bytes"""
    address: IPv4Interface | None = None
    """the host's own on a tap, with the prefix of its network"""
    subnet: IPv4Network | None = None
    """of the guests; None: the address's network"""
    nat: bool = False
    """guests reach what the host reaches by `way_out`, under its address"""
    way_out: str | None = None
    """interface; None: that of the default route"""
    namespace: str | os.PathLike[str] | None = None
    """path or name of the network namespace; None: the calling process's own"""

    @property
    def guests(self) -> IPv4Network | None:
        """Return the network that the guests are in."""
        return self.subnet or (self.address.network if self.address else None)


def set_up(plan: UplinkPlan, owner: int | None = None) -> None:
    """Do what the plan says, for the process that made the port (`owner`; None: this one).

    What a dead one left of the network is undone first. Raises NetError.
    """
    _check(plan)
    pid = os.getpid() if owner is None else owner

    def work() -> None:
        with inside(plan.namespace), uplink_records.locked():
            earlier = uplink_records.read(plan.network)
            if earlier is not None:
                if earlier.live and earlier.owner[0] != pid:
                    raise NetError(
                        f"network {plan.network} has its uplink in process {earlier.owner[0]}; stop that one first"
                    )
                _undo(earlier)
            _SetUp(plan, pid).run()

    _in_thread(work)


def take_down(network: str) -> None:
    """Undo all that `set_up` did for a network, if it did anything. Raises NetError."""

    def work() -> None:
        with uplink_records.locked():
            record = uplink_records.read(network)
            if record is not None:
                _undo(record)

    _in_thread(work)


def sweep(network: str | None = None) -> list[str]:
    """Undo what dead processes left of all networks, or of one; return the networks' names. Raises NetError."""

    def work() -> list[str]:
        with uplink_records.locked():
            records = [uplink_records.read(network)] if network is not None else uplink_records.read_all()
            dead = [record for record in records if record is not None and not record.live]
            for record in dead:
                _undo(record)
            return [record.network for record in dead]

    return _in_thread(work)


def tap_mac(network: str) -> str:
    """Return the address that the host has on a network's tap: always the same, so guests know it after a restart."""
    return "02:" + hashlib.blake2b(f"tap {network}".encode(), digest_size=5).digest().hex(":")


def _check(plan: UplinkPlan) -> None:
    where = f"network {plan.network}"
    uplink_records.path_of(plan.network)
    if plan.kind not in ("tap", "packet"):
        raise NetError(f'{where}: {plan.kind!r} is no kind of uplink; use "tap" or "packet"')
    if plan.kind == "packet" and (plan.address is not None or plan.nat):
        raise NetError(
            f"{where}: interface {plan.interface} is there already, and the host is not reached through it; "
            "an address and NAT need a tap"
        )
    if plan.nat and (plan.address is None or plan.guests is None):
        raise NetError(f"{where}: NAT needs an address of the host on the network; give one")
    if plan.nat:
        nat.check_nft(plan.network)


def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` where no event loop runs (pyroute2 brings its own) and where a namespace is nobody else's."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="uplink")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class _Links:
    """Netlink in the calling thread's namespace; what the kernel refuses is a NetError."""

    def __init__(self, where: str) -> None:
        from pyroute2 import IPRoute

        self._where = where
        self._routes = IPRoute()

    def __enter__(self) -> _Links:
        return self

    def __exit__(self, *_: object) -> None:
        self._routes.close()

    def call(self, what: str, function: str, *arguments: object, **fields: object) -> Any:
        """Return what pyroute2's `function` returns; `what` says in an error what could not be done."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            answer = getattr(self._routes, function)(*arguments, **fields)
            return list(answer) if function.startswith("get_") else answer
        except NetlinkError as error:
            why = "CAP_NET_ADMIN is needed; run it as root" if error.code == errno.EPERM else os.strerror(error.code)
            raise NetError(f"{self._where}: {what}: {why}") from None

    def link(self, interface: str) -> Any:
        """Return an interface. Raises NetError."""
        found = [link for link in self.call("interfaces", "get_links") if link.get_attr("IFLA_IFNAME") == interface]
        if not found:
            raise NetError(f"{self._where}: there is no interface {interface} here; see `ip link`")
        return found[0]

    def addresses(self) -> list[tuple[int, str]]:
        """Return all addresses of IPv4, with their interfaces' numbers."""
        found = self.call("addresses", "get_addr", family=2)
        return [
            (one["index"], f"{one.get_attr('IFA_LOCAL') or one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}")
            for one in found
        ]

    def routes(self, index: int) -> list[str]:
        """Return where the routes of an interface lead, but the default route."""
        found = self.call("routes", "get_routes", family=2)
        return [
            f"{route.get_attr('RTA_DST')}/{route['dst_len']}"
            for route in found
            if route.get_attr("RTA_OIF") == index and route["dst_len"]
        ]

    def way_out(self) -> str:
        """Return the interface of the default route. Raises NetError."""
        found = self.call("routes", "get_default_routes", family=2)
        ways = sorted((route.get_attr("RTA_PRIORITY") or 0, route.get_attr("RTA_OIF") or 0) for route in found)
        for link in self.call("interfaces", "get_links") if ways else ():
            if link["index"] == ways[0][1]:
                return str(link.get_attr("IFLA_IFNAME"))
        raise NetError(f"{self._where}: NAT needs a way out, and there is no default route here; name the interface")


class _SetUp:
    """One uplink on its way: what will be changed is found out, written down, then changed."""

    def __init__(self, plan: UplinkPlan, owner: int) -> None:
        self.plan = plan
        self.owner = owner

    def run(self) -> None:
        plan = self.plan
        with _Links(f"network {plan.network}") as links:
            link = links.link(plan.interface)
            record = self._record(links, link)
            uplink_records.write(record)
            try:
                self._change(links, record)
            except BaseException:
                with suppress(NetError):  # what it says is the first error's consequence; the record stays for a sweep
                    _undo(record)
                raise

    def _record(self, links: _Links, link: Any) -> Record:
        plan = self.plan
        found = os.stat(OWN)
        mtu, largest = int(link.get_attr("IFLA_MTU")), int(link.get_attr("IFLA_MAX_MTU") or 65535)
        self.mtu = min(plan.mtu, largest) if plan.kind == "tap" else max(plan.mtu, mtu)
        started = uplink_records.started(self.owner)
        if started is None:
            raise NetError(f"network {plan.network}: process {self.owner}, whose uplink it is, has ended")
        record = Record(
            network=plan.network,
            owner=(self.owner, started),
            namespace=None if plan.namespace is None else str(namespace_path(plan.namespace).absolute()),
            namespace_id=(found.st_dev, found.st_ino),
            interface=plan.interface,
            index=link["index"],
            up=bool(link["flags"] & 1),
            mtu=None if self.mtu == mtu else mtu,
        )
        if plan.address is not None:
            self._check_overlap(links, link["index"])
            record.addresses = [str(plan.address)]
            assert plan.guests is not None
            if not plan.guests.subnet_of(plan.address.network):
                record.routes = [str(plan.guests)]
        if plan.nat:
            self.way_out = plan.way_out or links.way_out()
            links.link(self.way_out)
            self._record_forwarding(record)
        return record

    def _check_overlap(self, links: _Links, index: int) -> None:
        plan = self.plan
        assert plan.address is not None
        assert plan.guests is not None
        for number, text in links.addresses():
            network = ip_interface(text).network
            if number != index and any(network.overlaps(ours) for ours in (plan.guests, plan.address.network)):
                raise NetError(
                    f"network {plan.network}: {plan.guests} overlaps {text}, which an interface of the host has here; "
                    "choose another subnet"
                )

    def _record_forwarding(self, record: Record) -> None:
        """What comes in by the way out is to be forwarded; another network's record may tell what was before."""
        key = f"net/ipv4/conf/{self.way_out}/forwarding"
        others = [one for one in _sharers(record) if key in one.sysctls]
        before = others[0].sysctls[key] if others else _sysctl(record.network, key)
        self.forwards_already = before != "0"
        if not self.forwards_already:
            record.sysctls[key] = before

    def _change(self, links: _Links, record: Record) -> None:
        plan, index = self.plan, record.index
        if plan.kind == "tap":
            self._guard_tap()
            links.call("its address", "link", "set", index=index, address=tap_mac(plan.network))
        if record.mtu is not None:
            links.call(f"MTU {self.mtu} on {plan.interface}", "link", "set", index=index, mtu=self.mtu)
        links.call(f"{plan.interface} can't be brought up", "link", "set", index=index, state="up")
        for text in record.addresses:
            address = IPv4Interface(text)
            links.call(
                f"address {text}",
                "addr", "replace", index=index, address=str(address.ip), prefixlen=address.network.prefixlen,
                broadcast=str(address.network.broadcast_address),
            )  # fmt: skip
        for text in record.routes:
            links.call(f"route to {text}", "route", "replace", dst=text, oif=index, scope=LINK)
        if plan.nat:
            assert plan.guests is not None
            guard = not self.forwards_already
            record.table = nat.table_name(plan.network)
            uplink_records.write(record)
            nat.add_table(plan.network, plan.interface, self.way_out, plan.guests, guard=guard)
            _set_sysctl(plan.network, f"net/ipv4/conf/{plan.interface}/forwarding", "1")  # goes with the tap
            for key in record.sysctls:
                _set_sysctl(plan.network, key, "1")

    def _guard_tap(self) -> None:
        """What comes from guests has a source that the route back leads to; no guest makes itself the host's router."""
        interface = self.plan.interface
        if (SYSCTLS / f"net/ipv6/conf/{interface}").exists():
            _set_sysctl(self.plan.network, f"net/ipv6/conf/{interface}/disable_ipv6", "1")
        _set_sysctl(self.plan.network, f"net/ipv4/conf/{interface}/rp_filter", "1")
        _set_sysctl(self.plan.network, f"net/ipv4/conf/{interface}/accept_redirects", "0")


def _sysctl(network: str, key: str) -> str:
    try:
        return (SYSCTLS / key).read_text().strip()
    except OSError as error:
        raise NetError(f"network {network}: {key} can't be read: {error.strerror}") from None


def _set_sysctl(network: str, key: str, value: str) -> None:
    try:
        (SYSCTLS / key).write_text(value)
    except OSError as error:
        raise NetError(
            f"network {network}: {key} can't be set to {value}: {error.strerror}; /proc/sys must be writable"
        ) from None


def _sharers(record: Record) -> list[Record]:
    """Return the records of other networks in the same namespace."""
    return [
        other
        for other in uplink_records.read_all()
        if other.network != record.network and other.namespace_id == record.namespace_id
    ]


def _find_namespace(record: Record) -> Path | None:
    """Return a path to the record's namespace; None if it is gone, and all that was in it."""
    given = [Path(record.namespace)] if record.namespace else []
    candidates = itertools.chain(given, NAMED.glob("*"), Path("/proc").glob("[0-9]*/ns/net"))
    return next((path for path in candidates if _is(record, path)), None)


def _is(record: Record, namespace: Path) -> bool:
    try:
        found = namespace.stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == record.namespace_id


def _undo(record: Record) -> None:
    """Undo what a record says, as far as it was done and is not undone already; then forget it."""
    if _is(record, Path(OWN)):
        _undo_here(record)
    elif (namespace := _find_namespace(record)) is not None:
        with inside(namespace):
            _undo_here(record)
    uplink_records.forget(record)


def _undo_here(record: Record) -> None:
    if record.table is not None:
        nat.remove_table(record.network, record.table)
    kept = {key for other in _sharers(record) for key in other.sysctls}
    for key, before in record.sysctls.items():
        if key not in kept and (SYSCTLS / key).exists() and _sysctl(record.network, key) != before:
            _set_sysctl(record.network, key, before)
    index = record.index
    with _Links(f"network {record.network}") as links:
        there = [link for link in links.call("interfaces", "get_links") if link["index"] == index]
        if not there or there[0].get_attr("IFLA_IFNAME") != record.interface:
            return
        for text in set(record.routes) & set(links.routes(index)):
            links.call(f"route to {text}", "route", "del", dst=text, oif=index, scope=LINK)
        for text in set(record.addresses) & {text for number, text in links.addresses() if number == index}:
            ip, _, prefix = text.partition("/")
            links.call(f"address {text}", "addr", "del", index=index, address=ip, prefixlen=int(prefix))
        if record.mtu is not None and there[0].get_attr("IFLA_MTU") != record.mtu:
            links.call(f"MTU {record.mtu}", "link", "set", index=index, mtu=record.mtu)
        if not record.up and there[0]["flags"] & 1:
            links.call("taking it down", "link", "set", index=index, state="down")
