"""What can be known to be wrong before anything of a cluster is made: its images, and what this host has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hostd.bench import baselines
from hostd.boot.address_map import AddressMap, lay_out
from hostd.boot.elf import Image
from hostd.boot.errors import ImageError
from hostd.cluster.errors import ClusterFileError
from hostd.cluster.model import Cluster, Guest, Slot
from hostd.cluster.plan import Plan
from hostd.cluster.plan import plan as make_plan
from hostd.kvm import System
from hostd.memory.layout import HOLES
from hostd.supervisor.programs import images as read_images
from hostd.supervisor.regions import file_size


def prepare(cluster: Cluster) -> tuple[Plan, dict[str, Image]]:
    """Plan `cluster`, compile and read its images, and check both against this host.

    Raises ClusterFileError, ImageError and BuildError, each one sentence.
    """
    plan = make_plan(cluster)
    try:
        images = read_images(cluster.guests.values())
        sizes = {region.name: file_size(region) for region in cluster.regions.values() if region.raw}
        for guest in cluster.guests.values():
            _check_guest(guest, images[guest.name], plan, sizes)
        baselines.check(cluster.baselines)
    except ImageError as error:
        raise ImageError(f"{cluster.path}: {error}") from None
    except ClusterFileError as error:
        raise ClusterFileError(f"{cluster.path}: {error}") from None
    except baselines.BaselineError as error:
        raise ClusterFileError(f"{cluster.path}: bench.baselines: {error}") from None
    return plan, images


def check_kvm() -> None:
    """Raise KvmError when guests can't run here at all."""
    System.open().close()


def _check_guest(guest: Guest, image: Image, plan: Plan, sizes: Mapping[str, int]) -> None:
    where = f"guest.{guest.name}"
    cpus = os.sched_getaffinity(0)
    for cpu in guest.cpus:
        if cpu not in cpus:
            there = ", ".join(map(str, sorted(cpus)))
            raise ClusterFileError(f"{where}.cpu: this host has no processor {cpu} for it; there are {there}")
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for key, size in (("memory", guest.memory), *((f"slot.{slot.name}.size", slot.size) for slot in guest.slots)):
        if size > host:
            raise ClusterFileError(f"{where}.{key}: {size} bytes are more than this host's {host}; give it less")
    planned = next(run for run in plan.guests.values() if run.group is guest)
    regions = [sizes.get(name, 0) for name, _ in planned.regions]
    try:
        places = lay_out(guest.memory, image, regions)
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
