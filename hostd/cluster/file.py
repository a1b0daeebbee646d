"""Read a cluster file: TOML, overrides, schema, then what one key says about another."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hostd.cluster import model, networks, paging
from hostd.cluster.errors import ClusterFileError
from hostd.cluster.near import near
from hostd.cluster.overrides import apply_overrides
from hostd.cluster.schema import (
    FROZEN_KEYS,
    LINUX_KEYS,
    UNIKERNEL_KEYS,
    DiskTable,
    FileTable,
    FramebufferTable,
    GuestTable,
    RegionTable,
    RootTable,
    known_keys,
)

FILE_LIMIT = 4 << 20
UNIKERNEL_MEMORY, LINUX_MEMORY = 16 << 20, 256 << 20
PIXEL = 4
"""bytes of a pixel"""
FRAMEBUFFER_LIMIT = 128 << 20
"""bytes; a picture of 8192 by 4096 pixels"""
NAME_RULE = "small letters, digits, - and _, starting with a letter or digit, at most 40"
NETWORK_NAME_RULE = NAME_RULE.replace("40", "32")

PATTERN_RULES = {
    "name": NAME_RULE,
    "template": NAME_RULE,
    **dict.fromkeys(("tap", "interface"), "an interface's name, without blank, / and :"),
}


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> model.Cluster:
    """Read and check the cluster file at `path` with `--set` overrides applied. Raises ClusterFileError."""
    file = Path(path)
    tables = _tables(file)
    apply_overrides(tables, overrides)
    return from_tables(file, tables, overrides)


def from_tables(file: Path, tables: dict[str, Any], overrides: Sequence[str] = ()) -> model.Cluster:
    """Check `tables`, what `file` says with `overrides` applied. Raises ClusterFileError."""
    try:
        checked = FileTable.model_validate(tables)
    except ValidationError as error:
        raise ClusterFileError(f"{file}: {_sentence(error)}") from None
    try:
        cluster = _cluster(file.resolve(), checked, tables, tuple(overrides))
        _check(cluster)
    except ClusterFileError as error:
        raise ClusterFileError(f"{file}: {error}") from None
    return cluster


def _tables(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = opened.read(FILE_LIMIT + 1)
    except FileNotFoundError:
        raise ClusterFileError(f"{file}: no such cluster file") from None
    except OSError as error:
        raise ClusterFileError(f"{file}: cannot be read: {error.strerror}") from None
    if len(data) > FILE_LIMIT:
        raise ClusterFileError(f"{file}: is larger than {FILE_LIMIT} bytes, so it is no cluster file")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ClusterFileError(f"{file}: is no TOML: {error}") from None


def _sentence(error: ValidationError) -> str:
    """Say the first thing that is wrong: its key and what to do."""
    first = error.errors(include_url=False)[0]
    # Union members and "[key]" are pydantic's own path parts, not the file's.
    own = {"[key]", "FileBacking", "literal['shm','hugetlb']"}
    path = [str(part) for part in first["loc"] if part not in own]
    key = ".".join(path)
    kind, given = first["type"], first.get("input")
    if kind == "extra_forbidden":
        problem = f"unknown key{near(path[-1], known_keys(path[:-1]))}"
    elif kind == "missing":
        problem = "is missing"
    elif "[key]" in first["loc"]:
        rule = {"env": "a variable's name without =", "network": NETWORK_NAME_RULE}.get(path[-2], NAME_RULE)
        problem = f"{given!r} is no valid name; use {rule}"
    elif kind == "literal_error":
        problem = f"{given!r} is not one of {first['ctx']['expected']}"
    elif kind == "string_pattern_mismatch":
        rule = PATTERN_RULES.get(path[-1], "text without a zero byte")
        problem = f"{given!r} is not allowed; use {rule}"
    elif kind == "value_error":
        problem = str(first["ctx"]["error"])
    elif kind in ("model_type", "dict_type"):
        problem = f"{given!r} is no table; give it keys of its own"
    else:
        message = first["msg"].removeprefix("Input ").replace("should be a valid", "is no")
        problem = f"{given!r}: {message.replace('should', 'must')}"
    return f"{key}: {problem}"


def _cluster(file: Path, tables: FileTable, plain: Mapping[str, Any], overrides: tuple[str, ...]) -> model.Cluster:
    name = tables.cluster.name or file.stem
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", name):
        raise ClusterFileError(
            f'its own name {name!r} cannot name the cluster; give [cluster] name = "..." ({NAME_RULE})'
        )
    folder = file.parent
    nets = {n: networks.network(n, table) for n, table in tables.network.items()}
    channels = {n: model.Channel(name=n, **dict(table)) for n, table in tables.channel.items()}
    return model.Cluster(
        name=name,
        path=file,
        regions={n: _region(folder, n, table) for n, table in tables.region.items()},
        channels=channels,
        guests={n: _guest(folder, n, table, nets) for n, table in tables.guest.items()},
        networks=nets,
        tables=plain,
        baselines=tuple(tables.bench.baselines),
        check=tuple(tables.check.command) if tables.check else (),
        overrides=overrides,
    )


def _region(folder: Path, name: str, table: RegionTable) -> model.Region:
    backing = table.backing if isinstance(table.backing, str) else (folder / table.backing.file).resolve()
    file = None if table.file is None else (folder / table.file).resolve()
    if file is not None and (table.size is not None or "backing" in table.model_fields_set):
        raise ClusterFileError(
            f"region.{name}: file maps a whole file as it is and takes no size or backing; remove one of them"
        )
    return model.Region(name, table.size or 0, backing, file)


def _guest(folder: Path, name: str, table: GuestTable, nets: Mapping[str, model.Network]) -> model.Guest:
    if table.template is not None:
        folder, table = _thawed(name, table, table.template)
    slots = [
        model.Slot(
            name=slot.name or f"slot-{number}",
            gpa=slot.gpa,
            size=slot.size,
            backing=slot.backing,
            path=None if slot.path is None else (folder / slot.path).resolve(),
            offset=slot.offset,
            access=slot.access,
        )
        for number, slot in enumerate(table.slot)
    ]
    return model.Guest(
        name=name,
        sources=tuple((folder / source).resolve() for source in table.program or ()),
        image=None if table.image is None else (folder / table.image).resolve(),
        memory=table.memory or (LINUX_MEMORY if table.kernel else UNIKERNEL_MEMORY),
        args=tuple(table.args),
        env=table.env,
        count=table.count,
        after=tuple(table.after),
        restart=table.restart,
        cpus=tuple(table.cpu),
        regions=table.regions,
        channels=table.channels,
        options=_options(folder, table),
        slots=tuple(slots),
        log_limit=table.log_limit,
        linux=_linux(folder, name, table),
        ports=networks.ports(name, table, nets),
        framebuffer=None if table.framebuffer is None else _framebuffer(folder, name, table.framebuffer),
        ceiling=table.ceiling,
        limit=table.limit,
        template=table.template,
    )


def _thawed(name: str, table: GuestTable, template: str) -> tuple[Path, GuestTable]:
    """Return a guest's table with what its template says, and the folder for paths in that."""
    from hostd.templates import TemplateError, find

    for key in ("program", "image", *FROZEN_KEYS):
        if key in table.model_fields_set:
            raise ClusterFileError(f"guest.{name}.{key}: comes with the template {template!r}; remove the key")
    try:
        found = find(template)
    except TemplateError as error:
        raise ClusterFileError(f"guest.{name}.template: {error}") from None
    try:
        old = GuestTable.model_validate({key: found.table[key] for key in FROZEN_KEYS if key in found.table})
    except ValidationError as error:
        what = f"guest.{name}.template: {template!r} is of another version"
        raise ClusterFileError(f"{what}: {_sentence(error)}") from None
    frozen = {key: getattr(old, key) for key in old.model_fields_set}
    return Path(found.file).parent, table.model_copy(update=frozen)


def _options(folder: Path, table: GuestTable) -> dict[str, bool | str | None]:
    """Return how the guest's RAM is made and kept."""
    keys = ("lock", "prefault", "mergeable", "copied", "thp", "hugetlb", "overcommit")
    paged = None if table.paged is None else str((folder / table.paged).resolve())
    return {key: getattr(table, key) for key in keys} | {"paged": paged}


def _framebuffer(folder: Path, name: str, table: FramebufferTable) -> model.Framebuffer:
    least = table.width * PIXEL
    stride = least if table.stride is None else table.stride
    if stride < least:
        raise ClusterFileError(
            f"guest.{name}.framebuffer.stride: {stride} bytes are fewer than the {least} of {table.width} pixels"
        )
    if stride * table.height > FRAMEBUFFER_LIMIT:
        raise ClusterFileError(
            f"guest.{name}.framebuffer: takes {stride * table.height} bytes; "
            f"{FRAMEBUFFER_LIMIT >> 20} MiB are possible, so make it smaller"
        )
    device = None if table.device is None else (folder / table.device).resolve()
    return model.Framebuffer(table.width, table.height, stride, device, table.offset)


def _linux(folder: Path, name: str, table: GuestTable) -> model.Linux | None:
    """Return what the keys of a Linux guest say; None for a unikernel guest. Refuses the one's keys in the other."""
    given = table.model_fields_set
    for key in LINUX_KEYS if table.kernel is None else UNIKERNEL_KEYS:
        if key in given and not (key == "vcpus" and table.vcpus == 1):
            kind, wanted = (
                ("a unikernel", "a Linux guest, one with a kernel")
                if table.kernel is None
                else ("a Linux guest", "a unikernel guest, one with a program or an image")
            )
            raise ClusterFileError(f"guest.{name}.{key}: is no key of {kind}; it belongs to {wanted}")
    if table.kernel is None:
        return None
    root = table.root
    return model.Linux(
        kernel=_named(folder, table.kernel),
        initrd=None if table.initrd is None else _named(folder, table.initrd),
        root=None if root is None else _root(folder, root),
        cmdline=table.cmdline,
        vcpus=table.vcpus,
        command=tuple(table.command),
        files={inside: (folder / outside).resolve() for inside, outside in table.files.items()},
        disks=tuple(_disk(folder, disk) for disk in table.disk),
        ports=tuple(table.ports),
        balloon=table.balloon,
        reboot=table.reboot,
        init=table.init,
    )


def _named(folder: Path, value: str) -> str:
    """Return an image's name as it is, a path (it has a slash) as an absolute one."""
    return str((folder / value).resolve()) if "/" in value else value


def _disk(folder: Path, table: DiskTable | RootTable) -> model.Disk:
    return model.Disk(_named(folder, table.file), table.device, table.access)


def _root(folder: Path, table: RootTable) -> model.Root:
    overlay = table.access == "ro" if table.overlay is None else table.overlay
    return model.Root(_disk(folder, table), overlay, table.dax and table.device == "pmem")


def _check(cluster: model.Cluster) -> None:
    if not cluster.guests:
        raise ClusterFileError("has no guest; declare one with [guest.NAME]")
    for channel in cluster.channels.values():
        region = cluster.regions.get(channel.region)
        if region is None:
            hint = near(channel.region, cluster.regions)
            raise ClusterFileError(f"channel.{channel.name}.region: region {channel.region!r} is not declared{hint}")
        if region.raw:
            raise ClusterFileError(
                f"channel.{channel.name}.region: region {region.name!r} is a file, which holds no channels"
            )
    for guest in cluster.guests.values():
        _check_guest(cluster, guest)
    networks.check(cluster)


def _check_guest(cluster: model.Cluster, guest: model.Guest) -> None:
    where = f"guest.{guest.name}"
    if guest.template is None and bool(guest.sources) + bool(guest.image) + bool(guest.linux) != 1:
        raise ClusterFileError(
            f'{where}: give one of program = "SOURCE.c", image = "FILE.elf", kernel = "debian-cloud" (or a file) and '
            'template = "NAME"'
        )
    for kind, used, declared in (
        ("region", guest.regions, cluster.regions),
        ("channel", guest.channels, cluster.channels),
    ):
        for name in used:
            if name not in declared:
                hint = near(name, declared)
                raise ClusterFileError(f"{where}.{kind}s.{name}: {kind} {name!r} is not declared{hint}")
    for name in guest.after:
        if name not in cluster.guests:
            hint = near(name, cluster.guests)
            raise ClusterFileError(f"{where}.after: guest {name!r} is not declared{hint}")
    for name, role in guest.channels.items():
        _check_end(where, cluster.channels[name], role, guest)
    for slot in guest.slots:
        if (slot.path is None) == (slot.backing in ("file", "device")):
            verb = "needs a path" if slot.path is None else "takes no path"
            raise ClusterFileError(f"{where}.slot.{slot.name}: backing {slot.backing!r} {verb}")
    _check_overlap(where, guest.slots)
    paging.check(guest)


def _check_end(where: str, channel: model.Channel, role: str, guest: model.Guest) -> None:
    if (role == "join") != (channel.kind == "barrier"):
        roles = "join" if channel.kind == "barrier" else "send or receive"
        raise ClusterFileError(f"{where}.channels.{channel.name}: a {channel.kind} channel takes {roles}, not {role!r}")
    reads_only = channel.kind == "broadcast" and role == "receive"
    if guest.regions.get(channel.region) == "ro" and not reads_only:
        raise ClusterFileError(
            f"{where}.channels.{channel.name}: {role!r} writes to region {channel.region!r}, which "
            f"{where}.regions maps read-only; map it rw"
        )


def _check_overlap(where: str, slots: Sequence[model.Slot]) -> None:
    ordered = sorted(slots, key=lambda slot: slot.gpa)
    for low, high in itertools.pairwise(ordered):
        if low.gpa + low.size > high.gpa:
            raise ClusterFileError(
                f"{where}.slot: {low.name} ({low.gpa:#x} to {low.gpa + low.size:#x}) and {high.name} "
                f"(from {high.gpa:#x}) overlap; move one"
            )
