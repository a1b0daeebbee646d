"""What can be known to be wrong before anything of a cluster is made: its images, and what this host has."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from hostd.bench import baselines
from hostd.boot.address_map import AddressMap, lay_out
from hostd.boot.elf import Image
from hostd.boot.errors import ImageError
from hostd.cluster.errors import ClusterFileError
from hostd.cluster.model import Cluster, Guest, Linux, Network, Slot
from hostd.cluster.plan import Plan
from hostd.cluster.plan import plan as make_plan
from hostd.doctor.limits import too_tight
from hostd.doctor.probe import KvmKind, examine
from hostd.kvm import NoKvmError, System
from hostd.memory.layout import HOLES
from hostd.supervisor import host_memory, huge_pages
from hostd.supervisor.boots import Boot, frozen, unikernel
from hostd.supervisor.programs import images as read_images
from hostd.supervisor.regions import file_size
from hostd.templates import TemplateError, find


def prepare(cluster: Cluster) -> tuple[Plan, dict[str, Boot]]:
    """Plan `cluster`, compile and read what its guests boot, and check both against this host.

    Raises ClusterFileError, ImageError and BuildError, each one sentence.
    """
    plan = make_plan(cluster)
    tight = too_tight(len(plan.guests))
    if tight is not None:
        raise ClusterFileError(f"{cluster.path}: {tight}")
    try:
        thawed = {g.name: frozen(find(g.template)) for g in cluster.guests.values() if g.template is not None}
        unikernels = [guest for guest in cluster.guests.values() if guest.linux is None]
        images = read_images(guest for guest in unikernels if guest.template is None)
        boots = {name: unikernel(image) for name, image in images.items()} | thawed
        host_memory.check(plan)
        sizes = {region.name: file_size(region) for region in cluster.regions.values() if region.raw}
        for guest in cluster.guests.values():
            _check_host(guest)
            huge_pages.check(guest)
            if guest.linux is None:
                _check_unikernel(guest, Image.of(dict(boots[guest.name].description)), plan, sizes)
            elif guest.template is None:
                boots[guest.name] = _linux(guest, guest.linux)
            else:
                _check_full_kvm(guest)
        for network in cluster.networks.values():
            _check_network(network)
        baselines.check(cluster.baselines)
    except ImageError as error:
        raise ImageError(f"{cluster.path}: {error}") from None
    except (ClusterFileError, TemplateError) as error:
        raise ClusterFileError(f"{cluster.path}: {error}") from None
    except baselines.BaselineError as error:
        raise ClusterFileError(f"{cluster.path}: bench.baselines: {error}") from None
    return plan, boots


def check_kvm() -> None:
    """Raise NoKvmError when guests can't run here at all."""
    try:
        System.open().close()
    except NoKvmError as error:
        raise NoKvmError(error.errno or 0, f"{error}; or {_in_the_lab()}") from None


def _in_the_lab() -> str:
    return f"run the same command in the lab: hostd lab -- {shlex.join(['hostd', *sys.argv[1:]])}"


def _linux(guest: Guest, linux: Linux) -> Boot:
    """Return what a Linux guest boots, if this host's KVM can run it and its memory holds it."""
    from hostd.boot.linux import cpuid, layout
    from hostd.supervisor.linux_boot import linux_boot

    _check_full_kvm(guest)
    boot, kernel = linux_boot(guest, linux)
    with System.open() as system:
        bits = cpuid.physical_bits(system.supported_cpuid())
    try:
        layout.lay_out(guest.memory, kernel, boot.description["initrd_size"], 0, bits)
    except ImageError as error:
        raise ImageError(f"guest.{guest.name}: {error}") from None
    return boot


def _check_full_kvm(guest: Guest) -> None:
    kind, seen = examine()
    if kind is not KvmKind.FULL:
        raise ClusterFileError(
            f"guest.{guest.name}.kernel: Linux guests need a KVM that runs ring 0, and this host's doesn't ({seen}); "
            f"{_in_the_lab()}"
        )


def _check_network(network: Network) -> None:
    """Check what a network's uplink wants of the host."""
    from net import nat
    from net.errors import NetError
    from net.namespaces import inside

    way, where = network.uplink, f"network.{network.name}"
    if way is None:
        return
    try:
        with inside(way.netns):
            there = {name for _, name in socket.if_nameindex()}
        if network.nat:
            nat.check_nft(network.name)
    except NetError as error:
        raise ClusterFileError(f"{where}: {error}") from None
    if way.kind == "tap" and way.interface in there:
        raise ClusterFileError(
            f"{where}.uplink.tap: there is an interface {way.interface} already; choose another name"
        )
    if way.kind == "packet" and way.interface not in there:
        names = ", ".join(sorted(there))
        raise ClusterFileError(
            f"{where}.uplink.interface: there is no interface {way.interface} here; there are {names}"
        )


def _check_host(guest: Guest) -> None:
    """Check what `guest` wants of the host's processors."""
    where = f"guest.{guest.name}"
    cpus = os.sched_getaffinity(0)
    for cpu in guest.cpus:
        if cpu not in cpus:
            there = ", ".join(map(str, sorted(cpus)))
            raise ClusterFileError(f"{where}.cpu: this host has no processor {cpu} for it; there are {there}")


def _check_unikernel(guest: Guest, image: Image, plan: Plan, sizes: Mapping[str, int]) -> None:
    where = f"guest.{guest.name}"
    planned = next(run for run in plan.guests.values() if run.group is guest)
    regions = [sizes.get(name, 0) for name, _ in planned.regions]
    try:
        places = lay_out(guest.memory, image, regions, guest.framebuffer.size if guest.framebuffer else 0)
    except ImageError as error:
        raise ImageError(f"{where}: {error}") from None
    for slot in guest.slots:
        _check_slot(where, slot, places)


def _check_slot(where: str, slot: Slot, places: AddressMap) -> None:
    taken = [("memory", span.start, span.end) for span in (places.low, places.image, *places.ram)]
    taken += [(name, hole.start, hole.stop) for name, hole in HOLES.items()]
    for name, start, end in taken:
        if slot.gpa < end and start < slot.gpa + slot.size:
            raise ClusterFileError(
                f"{where}.slot.{slot.name}: {slot.gpa:#x} to {slot.gpa + slot.size:#x} overlaps the guest's {name} "
                f"({start:#x} to {end:#x}); move it"
            )
    if slot.path is not None and not Path(slot.path).exists():
        raise ClusterFileError(f"{where}.slot.{slot.name}.path: {slot.path}: no such file")
