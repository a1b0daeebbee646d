"""The info area: what a unikernel is told about itself, in the structures of guest_abi.h."""

from __future__ import annotations

from typing import Any

from hostd.boot._abi import ffi, lib
from hostd.boot.address_map import AddressMap
from hostd.boot.area import InfoArea
from hostd.boot.errors import ImageError
from hostd.boot.networks import networks

KINDS: dict[str, int] = {"spsc": 0, "mpsc": 1, "broadcast": 2, "barrier": 3}
ROLES = {"send": lib.GUEST_ROLE_SEND, "receive": lib.GUEST_ROLE_RECEIVE, "join": lib.GUEST_ROLE_JOIN}


def info_area(spec: dict[str, Any], places: AddressMap, tsc_khz: int, image_path: str) -> bytes:
    """Return the info area for the guest that `spec` describes.

    Raises ImageError when all it tells together outgrows it, and for a network whose rings are missing.
    """
    area = InfoArea()
    head: dict[str, Any] = {
        "magic": lib.GUEST_ABI_MAGIC,
        "version": lib.GUEST_ABI_VERSION,
        "bells": spec["bells"],
        "tsc_khz": tsc_khz,
        "memory_size": spec["memory"],
        "image": _range(places.image.start, places.image.size),
        "stack": _range(places.stack.start, places.stack.size),
        "seed": spec["seed"],
        # First what is the same in all clones of a guest, which may hold its address.
        "args": area.texts([image_path.rsplit("/", 1)[-1], *spec["args"]]),
        "env": area.texts([f"{name}={value}" for name, value in spec["env"].items()]),
        "name": area.text(spec["name"], room=lib.GUEST_NAME_SIZE),
        "cluster": area.text(spec["cluster"], room=lib.GUEST_NAME_SIZE),
        "heap": area.table("struct guest_range", [_range(s.start, s.size) for s in places.heap]),
        "regions": area.table("struct guest_region", _regions(spec["regions"], places)),
        "channels": area.table("struct guest_channel", [_channel(c) for c in spec["channels"]]),
        "networks": area.table("struct guest_network", networks(area, spec)),
        "framebuffer": _framebuffer(spec["framebuffer"], places),
        "generation": spec.get("generation", 0),
    }
    head["size"] = len(area.bytes)
    if len(area.bytes) > lib.GUEST_INFO_SIZE:
        raise ImageError(
            f"guest {spec['name']}: its arguments, environment, regions, channels and networks take "
            f"{len(area.bytes)} bytes, more than the info area's {lib.GUEST_INFO_SIZE}; give it fewer"
        )
    info = ffi.new("struct guest_info *", head)
    area.bytes[: ffi.sizeof("struct guest_info")] = bytes(ffi.buffer(info))
    return bytes(area.bytes)


def _range(address: int, size: int) -> dict[str, int]:
    return {"address": address, "size": size}


def _framebuffer(framebuffer: dict[str, Any] | None, places: AddressMap) -> dict[str, int]:
    if framebuffer is None or places.framebuffer is None:
        return {"address": 0}
    size = {name: framebuffer[name] for name in ("width", "height", "stride")}
    return {"address": places.framebuffer.start, **size}


def _regions(regions: list[dict[str, Any]], places: AddressMap) -> list[dict[str, Any]]:
    return [
        {
            "name": region["name"].encode(),
            "address": span.start,
            "size": region["size"],
            "flags": (lib.GUEST_READ_ONLY if region["access"] == "ro" else 0) | (lib.GUEST_RAW if region["raw"] else 0),
        }
        for region, span in zip(regions, places.regions, strict=True)
    ]


def _channel(channel: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: value for key, value in channel.items() if isinstance(value, int)}
    return numbers | {
        "name": channel["name"].encode(),
        "kind": KINDS[channel["kind"]],
        "role": ROLES[channel["role"]],
    }
