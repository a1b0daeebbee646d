"""One network's switch process: started, given its ports, watched, started again when it dies, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hostd.cluster.addressing import UPLINK_PORT
from hostd.cluster.model import Network
from hostd.cluster.plan import PlannedGuest
from hostd.supervisor import processes
from hostd.supervisor.guest_run import FIRST_DELAY, LONGEST_DELAY, SOUND_RUN
from hostd.supervisor.regions import Regions

if TYPE_CHECKING:
    from net.async_client import AsyncClient
    from net.requests import Request

STOP_TIMEOUT = 5.0
CLOSE_DELAY = 1.0
CHANGE_TIMEOUT, ANSWER_TIMEOUT = 10.0, 2.0


class NetworkSwitch:
    """A switch; `state` is waiting, starting, running, restarting or ended, `message` what went wrong last."""

    def __init__(
        self,
        cluster: str,
        network: Network,
        guests: Sequence[PlannedGuest],
        regions: Regions,
        *,
        foreground: bool,
        log: Path,
    ) -> None:
        self.cluster = cluster
        self.network = network
        self.state = "waiting"
        self.message = ""
        self.restarts = 0
        self._guests = guests
        self._regions = regions
        self._foreground = foreground
        self._log = log
        self._client: AsyncClient | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._process: processes.Process | None = None
        self._watched: int | None = None
        """a descriptor that is readable once the process is gone"""
        self._running_since = 0.0
        self._crashes = 0
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        """held by who adds and removes ports"""
        self._closed = False

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def full_name(self) -> str:
        """The network as `hostd net` calls it."""
        return f"{self.cluster}/{self.name}"

    # --- coming up ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the switch with all its ports. Raises NetError or OSError."""
        from net import leftovers

        # A run that crashed may have left its sockets, and on the host what its uplink needed.
        await asyncio.to_thread(leftovers.remove_networks, [leftovers.leftover(self.cluster, self.name)])
        await self._come_up()

    async def _come_up(self) -> None:
        from net.async_client import AsyncClient
        from net.client import ConnectionLostError
        from net.errors import NetError
        from net.process import Configuration, spawn

        self.state = "starting"
        log = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # In the background a switch, as guests do, outlives its supervisor.
            configuration = Configuration(self.cluster, self.name, mtu=self.network.mtu, lifeline=self._foreground)
            self._child, connection = spawn(configuration, stderr=log)
        finally:
            os.close(log)
        self._watch(self._child.pid)
        try:
            self._client = await AsyncClient.over(connection)
        except ConnectionLostError:
            said = self._last_words()
            raise NetError(f"network {self.full_name}: its switch ended before it was up{said}") from None
        async with self._turn:
            # After a crash guests wait for their ports, and an uplink takes its time.
            for guest in self._guests:
                await self._call(self._port(guest))
            await self._add_uplink()
        self._run()

    def _run(self) -> None:
        self.state, self.message, self._running_since = "running", "", time.monotonic()

    async def adopt(self) -> None:
        """Take over the switch that another supervisor left, or start one. Raises NetError or OSError."""
        from net import leftovers
        from net.async_client import AsyncClient
        from net.errors import NetError

        try:
            self._client = await AsyncClient.connect(self.cluster, self.name)
            self._watch(self._client.hello["pid"])
            await self._complete()
        except (NetError, OSError):
            self._kill()
            # Its folder stays: it tells which ports others attached.
            await asyncio.to_thread(leftovers.end_switch, self.cluster, self.name)
            await self._come_up()
        else:
            self._run()

    async def _complete(self) -> None:
        """Add the ports that an adopted switch lacks, and those anew whose rings are others now."""
        from net import requests

        async with self._turn:
            ports = {port["name"] for port in (await self._call(requests.show()))["ports"]}
            if UPLINK_PORT not in ports:
                await self._add_uplink()
            for guest in self._guests:
                if guest.name in ports and guest.ports[self.name].region in self._regions.renewed:
                    await self._call(requests.remove(guest.name))
                    ports.remove(guest.name)
                if guest.name not in ports:
                    await self._call(self._port(guest))

    def _watch(self, pid: int) -> None:
        self._process = processes.identify(pid)
        self._watched = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._watched, self._gone)

    async def _call(self, request: Request, timeout: float = CHANGE_TIMEOUT) -> Any:
        from net.client import ConnectionLostError

        if self._client is None:
            raise ConnectionLostError(f"network {self.full_name}: its switch has ended")
        return await self._client.call(request, timeout)

    # --- ports -------------------------------------------------------------------------------------------------

    def _port(self, guest: PlannedGuest) -> Request:
        """Return the request that adds a guest's port."""
        from net import requests

        port = guest.ports[self.name]
        options: dict[str, Any] = {
            "mac": port.mac if port.group.fixed else None,
            "isolated": port.group.isolated,
            "rate": port.group.rate,
        }
        if guest.group.linux is None:
            return requests.add_ring(guest.name, self._regions.region(port.region), **options)
        return requests.add_vhost(guest.name, **options)

    async def _add_uplink(self) -> None:
        from net import requests, uplink

        way = self.network.uplink
        if way is None:
            return
        add = requests.add_tap if way.kind == "tap" else requests.add_packet
        await self._call(add(UPLINK_PORT, way.interface, netns=way.netns, uplink=True))
        assert self._process is not None
        subnet = self.network.subnet
        address = IPv4Interface((way.address, subnet.prefixlen)) if way.address and subnet else None
        plan = uplink.UplinkPlan(
            self.full_name,
            way.kind,
            way.interface,
            mtu=self.network.mtu,
            address=address,
            subnet=subnet,
            nat=self.network.nat,
            namespace=way.netns,
        )
        # What is set up goes by the switch's life: its end takes the tap away.
        await asyncio.to_thread(uplink.set_up, plan, owner=self._process["pid"])

    async def renew(self, guest: PlannedGuest) -> None:
        """Give a guest that is to be started again a port without a past."""
        from net import requests
        from net.errors import NetError

        async with self._turn:
            if self.state != "running":
                self._regions.clear(guest.ports[self.name].region)
                return
            try:
                with contextlib.suppress(NetError):  # It may not be there.
                    await self._call(requests.remove(guest.name))
                self._regions.clear(guest.ports[self.name].region)
                await self._call(self._port(guest))
            except NetError as error:
                self._complain(error)

    # --- its end -----------------------------------------------------------------------------------------------

    def _gone(self) -> None:
        """The process has died."""
        self._let_go()
        for guest in self._guests:
            if guest.group.linux is None:
                self._regions.mark_switch_gone(guest.ports[self.name].region)
        if self._closed or self.state != "running":
            return
        sound = time.monotonic() - self._running_since > SOUND_RUN
        self._crashes = 0 if sound else self._crashes + 1
        self._complain("its switch died; it is started again")
        self.state = "restarting"
        self._task = asyncio.get_running_loop().create_task(self._restart())

    async def _restart(self) -> None:
        # The first time at once: guests wait for their network.
        delay = 0.0 if self._crashes <= 1 else min(FIRST_DELAY * 2 ** (self._crashes - 2), LONGEST_DELAY)
        while not self._closed:
            await asyncio.sleep(delay)
            self.restarts += 1
            try:
                await self._come_up()
            except Exception as error:
                self._complain(error)
                self._kill()
                self.state = "restarting"
                self._crashes += 1
                delay = min(max(FIRST_DELAY, delay * 2), LONGEST_DELAY)
            else:
                return

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return f": {lines[-1]}" if lines else ""

    def _complain(self, what: object) -> None:
        self.message = f"network {self.full_name}: {what}"
        if not self._foreground:
            print(self.message, file=sys.stderr, flush=True)

    def _let_go(self) -> None:
        """Forget the process, which is gone or another's."""
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
            self._watched = None
        if self._client is not None:
            # Who still waits for an answer is to see the connection's end first.
            asyncio.get_running_loop().call_later(CLOSE_DELAY, self._client.close)
            self._client = None
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(0)
        self._child = self._process = None

    def _kill(self) -> None:
        if self._watched is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._watched, signal.SIGKILL)
        if self._child is not None:
            self._child.wait()
        self._let_go()

    async def close(self) -> None:
        """Stop the switch, in good order if it still answers; nothing is left of the network."""
        from net import leftovers, requests, uplink
        from net.errors import NetError

        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.network.uplink is not None and self.state != "waiting":
            with contextlib.suppress(NetError):
                await asyncio.to_thread(uplink.take_down, self.full_name)
        if self._client is not None:
            with contextlib.suppress(NetError, OSError):
                await self._call(requests.stop(), STOP_TIMEOUT)
            await self._wait_gone()
        self._kill()
        if self.state != "waiting":
            await asyncio.to_thread(leftovers.remove_networks, [leftovers.leftover(self.cluster, self.name)])
        self.state = "ended"

    async def _wait_gone(self) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._watched is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.005)

    # --- what there is to see ----------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return the network's line of `ps`: bytes of memory and seconds of CPU are the switch process's."""
        network, process = self.network, self._process
        running = self.state == "running" and process is not None
        found: dict[str, Any] = {
            "name": self.name,
            "subnet": None if network.subnet is None else str(network.subnet),
            "mtu": network.mtu,
            "uplink": None if network.uplink is None else network.uplink.interface,
            "state": self.state,
            "message": self.message,
            "pid": process["pid"] if running and process is not None else None,
            "restarts": self.restarts,
            "uptime_seconds": time.monotonic() - self._running_since if running else None,
            "memory_bytes": None,
            "cpu_seconds": None,
            "guests": [guest.name for guest in self._guests],
        }
        if running and process is not None:
            with contextlib.suppress(OSError):
                found["memory_bytes"] = processes.proportional_size(process["pid"])
                found["cpu_seconds"] = processes.cpu_seconds(process["pid"])
        return found

    async def describe(self) -> dict[str, Any]:
        """Return all that is known of the network, its ports and counters included."""
        from net import requests
        from net.errors import NetError

        network, way = self.network, self.network.uplink
        found = self.summary() | {
            "gateway": None if network.gateway is None else str(network.gateway),
            "nat": network.nat,
            "uplink": None
            if way is None
            else {
                "kind": way.kind,
                "interface": way.interface,
                "address": None if way.address is None else str(way.address),
                "netns": way.netns,
            },
        }
        if self._client is not None and self.state == "running":
            try:
                found["switch"] = _in_words(await self._call(requests.show(), ANSWER_TIMEOUT))
            except NetError as error:
                found["switch"] = {"error": str(error)}
        return found


def _in_words(value: Any) -> Any:
    """Return what a switch said with its MAC addresses as people write them."""
    if isinstance(value, bytes):
        return value.hex(":")
    if isinstance(value, dict):
        return {key: _in_words(item) for key, item in value.items()}
    return [_in_words(item) for item in value] if isinstance(value, list) else value
