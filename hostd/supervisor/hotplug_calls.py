"""Calls that add memory, regions and a picture to a unikernel that runs, and take them away again."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from hostd.cluster.near import near
from hostd.control.server import Call, RequestError
from hostd.supervisor.guest_run import GuestRun
from hostd.supervisor.lookup import Arguments, Lookup, ask

if TYPE_CHECKING:
    from hostd.supervisor.supervisor import Supervisor

POLL = 0.01
"""seconds between two looks at what a guest still holds"""
MOST_PIXELS = 16384
"""of a picture's width and height"""


class HotplugCalls:
    """`plug`, `attach`, `unplug` and `plugged`."""

    def __init__(self, lookup: Lookup, supervisor: Supervisor) -> None:
        self._lookup = lookup
        self._supervisor = supervisor
        self.calls: dict[str, Call] = {
            "plug": self.plug,
            "attach": self.attach,
            "unplug": self.unplug,
            "plugged": self.plugged,
        }

    async def plug(self, arguments: Arguments) -> dict[str, Any]:
        """Give a running guest memory of `size` bytes, or a picture of `width` by `height` pixels."""
        run = self._unikernel(arguments)
        what = self._picture(run, arguments) if arguments["kind"] == "framebuffer" else self._memory(run, arguments)
        known: list[dict[str, Any]] = await ask(run, "plugged")
        if what["label"] is None:
            names = {plug["name"] for plug in known}
            what["label"] = next(name for at in range(len(names) + 1) if (name := f"memory-{at}") not in names)
        if what["kind"] == "framebuffer" and any(plug["kind"] == "framebuffer" for plug in known):
            raise RequestError(f"guest {run.name}: has a frame buffer already; it can have one")
        return await self._add(run, what)

    async def attach(self, arguments: Arguments) -> dict[str, Any]:
        """Let a running guest share `region` of its cluster; `access` is "rw" or "ro"."""
        run, name, access = self._unikernel(arguments), arguments["region"], arguments.get("access", "rw")
        regions = self._supervisor.plan.cluster.regions
        if name not in regions:
            raise RequestError(
                f"cluster {self._supervisor.plan.cluster.name} has no region {name!r}{near(name, regions)}"
            )
        if name in dict(run.plan.regions):
            raise RequestError(f"guest {run.name}: has region {name} from its start on, by its cluster file")
        if access not in ("rw", "ro"):
            raise RequestError(f'access is {access!r}; it can be "rw" or "ro"')
        return await self._add(run, {"kind": "region", **self._supervisor.regions.attachable(name, access)})

    async def unplug(self, arguments: Arguments) -> dict[str, Any]:
        """Take `label` away: ask the guest for it and wait `seconds` until it gives it up, or just `force` it."""
        run, name, force = self._unikernel(arguments), arguments["label"], bool(arguments.get("force"))
        timeout = float(arguments.get("seconds", 5.0))
        await ask(run, "unplug", label=name, force=force)
        deadline = time.monotonic() + timeout
        while run.state == "running" and any(plug["name"] == name for plug in await ask(run, "plugged")):
            if time.monotonic() > deadline:
                await ask(run, "unplug", label=name, force=False, want=False)
                raise RequestError(
                    f"guest {run.name}: still holds {name}, {timeout:g} s after it was asked to give it up; "
                    "ask for longer with --timeout, or take it away with --force"
                )
            await asyncio.sleep(POLL)
        await self._look_again(run)
        return {"guest": run.name, "name": name, "forced": force}

    async def plugged(self, arguments: Arguments) -> list[dict[str, Any]]:
        """What was added to a guest while it runs."""
        found: list[dict[str, Any]] = await ask(self._unikernel(arguments), "plugged")
        return found

    def _unikernel(self, arguments: Arguments) -> GuestRun:
        run = self._lookup.running(arguments, "so nothing can be added to it or taken away")
        if run.plan.group.linux is not None:
            raise RequestError(
                f"guest {run.name}: a Linux guest can't be given memory, regions or a picture while it runs; "
                "say them in the cluster file, and start it again"
            )
        return run

    def _memory(self, run: GuestRun, arguments: Arguments) -> dict[str, Any]:
        size, page = int(arguments["size"]), 4096
        if size <= 0 or size % page:
            raise RequestError(f"guest {run.name}: {size} bytes of memory; it must be a multiple of {page}, and not 0")
        return {"kind": "memory", "label": arguments.get("label"), "size": size, "access": "rw"}

    def _picture(self, run: GuestRun, arguments: Arguments) -> dict[str, Any]:
        width, height = int(arguments.get("width") or 1024), int(arguments.get("height") or 768)
        if not 0 < width <= MOST_PIXELS or not 0 < height <= MOST_PIXELS:
            raise RequestError(f"guest {run.name}: {width} x {height} pixels; both must be 1 to {MOST_PIXELS}")
        if run.plan.group.framebuffer is not None:
            raise RequestError(f"guest {run.name}: has a frame buffer already, by its cluster file")
        picture = {"width": width, "height": height, "stride": 4 * width}
        size = 4 * width * height
        return {"kind": "framebuffer", "label": "framebuffer", "size": size, "access": "rw", "picture": picture}

    async def _add(self, run: GuestRun, what: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = await ask(run, "plug", **what)
        await self._look_again(run)
        return {"guest": run.name, **told}

    async def _look_again(self, run: GuestRun) -> None:
        if run.state == "running":
            run.rows = await ask(run, "slots")
