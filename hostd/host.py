"""hostd from Python: run clusters, bring them up in the background, find those that run.

with Host() as host:
    cluster = host.run("examples/pingpong.toml")
    print(cluster.guests["ping"].reports)
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from guestlib.linux.protocol import Type
from hostd.cluster.file import load
from hostd.control.client import Client, ConnectionLostError, ControlError
from hostd.supervisor.background import attach, start
from hostd.supervisor.directory import ClusterDirectory, cluster_names
from hostd.supervisor.errors import SupervisorError
from hostd.supervisor.processes import alive

if TYPE_CHECKING:
    from PIL.Image import Image

    import shm
    from hostd.agent.copying import Copied, Place
    from hostd.templates import Template

AGENT_WAIT = 30.0
"""seconds that a guest which still boots is waited for"""

PAGEOUT_WAIT = 3600.0
"""seconds: a guest may be large and a disk slow"""

File = str | os.PathLike[str]


@dataclass(frozen=True)
class GuestResult:
    """How a guest ended, or stands: `outcome` is "exit", "fault", "killed", "error", or its state while it runs."""

    name: str
    outcome: str
    exit_code: int | None
    message: str
    reports: Mapping[str, Any]
    fault: Mapping[str, Any] | None
    restarts: int
    start_ns: int | None


@dataclass(frozen=True)
class Result:
    """What a run gave. `json` is the whole of it, as `hostd run --json` prints it."""

    json: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Whether every guest exited with 0 and the file's own check passed."""
        return bool(self.json["ok"])

    @property
    def guests(self) -> dict[str, GuestResult]:
        return {name: GuestResult(name, **guest) for name, guest in self.json["guests"].items()}

    @property
    def baseline(self) -> Mapping[str, float]:
        """The baselines measured in the same run, by name."""
        baseline: Mapping[str, float] = self.json["baseline"]
        return baseline

    @property
    def memory(self) -> Mapping[str, Any]:
        """Bytes per running guest, and how that was measured."""
        memory: Mapping[str, Any] = self.json["memory"]
        return memory


@dataclass(frozen=True)
class Completed:
    """How a command in a guest went."""

    exit_code: int
    """0..255; 128 + n after signal n"""
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class PagedOut:
    """What a page-out did, in bytes."""

    left: int
    """left memory; `to_swap` and `to_files` together"""
    to_swap: int
    to_files: int
    resident: int
    """of the rows meant, still, or already again, in memory"""
    swapped: int
    note: str | None
    """why more did not leave, if the host is why"""


class Guest:
    """A guest of a background cluster."""

    def __init__(self, cluster: BackgroundCluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    @property
    def reports(self) -> Mapping[str, Any]:
        """What the guest has reported so far."""
        return self.result.reports

    @property
    def result(self) -> GuestResult:
        """How the guest stands, or ended."""
        return self.cluster.result().guests[self.name]

    @property
    def log(self) -> str:
        """What it wrote to its console, as far as the log has not been rotated away."""
        path = ClusterDirectory(self.cluster.name).log(self.name)
        return path.read_text(errors="replace") if path.exists() else ""

    def slots(self) -> list[dict[str, Any]]:
        """The rows of its slot table, each with its resident, shared, private and swapped bytes."""
        answer: dict[str, Any] = self.cluster.call("slots", guest=self.name)
        rows: list[dict[str, Any]] = answer["slots"]
        return rows

    def balloon(self, target: int | None = None) -> dict[str, Any]:
        """Return how a Linux guest's balloon stands; before that ask it to hold `target` bytes, if that is given."""
        told: dict[str, Any] = self.cluster.call("balloon", guest=self.name, target=target)
        return told

    def plug_memory(self, size: int, name: str | None = None) -> dict[str, Any]:
        """Give a running unikernel `size` bytes of memory more; return its "name", "gpa" and so on."""
        told: dict[str, Any] = self.cluster.call("plug", guest=self.name, kind="memory", size=size, label=name)
        return told

    def plug_framebuffer(self, width: int = 1024, height: int = 768) -> dict[str, Any]:
        """Give a running unikernel a picture to draw in, of so many pixels."""
        told: dict[str, Any] = self.cluster.call(
            "plug", guest=self.name, kind="framebuffer", width=width, height=height
        )
        return told

    def attach_region(self, region: str, *, access: str = "rw") -> dict[str, Any]:
        """Let a running unikernel share a region of its cluster, "rw" or "ro"."""
        told: dict[str, Any] = self.cluster.call("attach", guest=self.name, region=region, access=access)
        return told

    def unplug(self, name: str, *, force: bool = False, timeout: float = 5.0) -> None:
        """Take away what was added while it runs: the guest has `timeout` seconds to give it up, unless `force`."""
        wait = timeout + 30
        self.cluster.call("unplug", guest=self.name, timeout=wait, label=name, force=force, seconds=timeout)

    def plugged(self) -> list[dict[str, Any]]:
        """Return what was added to it while it runs."""
        told: list[dict[str, Any]] = self.cluster.call("plugged", guest=self.name)
        return told

    def stats(self) -> dict[str, Any]:
        """What KVM, the run loop and the kernel count of it (docs/statistics.md)."""
        told: dict[str, Any] = self.cluster.call("statistics", guest=self.name)
        return told

    def dirty(self, seconds: float) -> dict[str, int]:
        """Return how many pages of each row it writes within `seconds`."""
        told = self.cluster.call("dirty", timeout=seconds + 90, guest=self.name, seconds=seconds)
        pages: dict[str, int] = told["pages"]
        return pages

    def read(self, gpa: int, size: int) -> bytes:
        """Return `size` bytes (at most 1 MiB) of its memory, from guest physical address `gpa` on."""
        data: bytes = self.cluster.call("read", guest=self.name, gpa=gpa, size=size)
        return data

    def read_virtual(self, address: int, size: int) -> bytes:
        """Return `size` bytes (at most 1 MiB) of its memory by virtual address, as vCPU 0 sees it."""
        data: bytes = self.cluster.call("read_virtual", guest=self.name, address=address, size=size)
        return data

    def write(self, gpa: int, data: bytes, *, virtual: bool = False) -> None:
        """Write `data` (at most 1 MiB) to its memory, from a guest physical or a virtual address on; it runs on.

        Raises ControlError: nothing is there, it is read-only, or a debugger is attached.
        """
        self.cluster.call("write", guest=self.name, address=gpa, data=data, virtual=virtual)

    def search(self, pattern: bytes, slot: str | None = None, *, limit: int = 100) -> list[int]:
        """Return the first guest physical addresses where its memory holds `pattern`: in `slot`, or in all but devices.

        What it has never touched is not touched. Raises ControlError.
        """
        from hostd.gdb.searching import search

        return search(self.cluster, self.name, pattern, slot=slot, limit=limit)

    def debug(self) -> str:
        """Return the path of a socket where gdb can attach: `target remote PATH`; it stops when gdb does.

        Raises ControlError: it doesn't run, or a debugger is attached already.
        """
        place: dict[str, Any] = self.cluster.call("debug", guest=self.name)
        return str(place["socket"])

    def pageout(self, slot: str | None = None, *, size: int | None = None) -> PagedOut:
        """Send its memory to swap or to files: the rows named `slot`, or all that are its own; at most `size` bytes.

        It runs on, and what it touches comes back. Raises ControlError: it doesn't run, is locked, has no such slot.
        """
        answer = self.cluster.call("pageout", timeout=PAGEOUT_WAIT, guest=self.name, slot=slot, bytes=size)
        keys = ("left", "to_swap", "to_files", "resident", "swapped", "note")
        return PagedOut(**{key: answer[key] for key in keys})

    def screenshot(self) -> Image:
        """Return what it shows in its frame buffer. Raises ControlError: it has none, or doesn't run."""
        from hostd.screen.guest import screenshot

        return screenshot(self.cluster, self.name)

    def template(self, name: str, *, replace: bool = False) -> Template:
        """Freeze it into the template `name`, from which guests go on (`Host.run_from`); it goes on itself.

        Raises TemplateError: there is one of that name, which isn't to be replaced; ControlError: it has channels open
        or doesn't run.
        """
        from hostd.templates.making import make

        return make(self.cluster, self.name, name, replace=replace)

    def exec(
        self,
        *argv: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        wait: float = AGENT_WAIT,
    ) -> Completed:
        """Run a command in a Linux guest, whose agent may take `wait` seconds to answer.

        Raises AgentError when it can't be run or the guest ends meanwhile, ControlError as all calls do.
        """
        from hostd.agent import terminal
        from hostd.agent.link import exec_payload
        from hostd.agent.remote import finish, open_stream

        payload = exec_payload(argv, env=env, cwd=cwd)

        async def work() -> Completed:
            client = attach(self.cluster.name)
            async with await open_stream(client, self.name, Type.EXEC, payload, wait=wait) as remote:
                return Completed(*await terminal.collect(remote, stdin))

        return finish(work())

    def copy_in(self, source: File, path: str, *, wait: float = AGENT_WAIT) -> Copied:
        """Copy a file or folder of this host to `path` in a Linux guest, into it if it is a folder.

        Raises AgentError, ControlError and OSError.
        """
        from hostd.agent import copying
        from hostd.agent.remote import finish

        return finish(copying.copy_in(Path(source), self._place(path, wait)))

    def copy_out(self, path: str, destination: File, *, wait: float = AGENT_WAIT) -> Copied:
        """Copy a file or folder of a Linux guest to this host, into `destination` if it is a folder.

        Raises AgentError, ControlError and OSError.
        """
        from hostd.agent import copying
        from hostd.agent.remote import finish

        return finish(copying.copy_out(self._place(path, wait), Path(destination)))

    def _place(self, path: str, wait: float) -> Place:
        from hostd.agent.copying import Place
        from hostd.agent.remote import RemoteStream, open_stream

        async def open_one(kind: Type, payload: bytes) -> RemoteStream:
            return await open_stream(attach(self.cluster.name), self.name, kind, payload, wait=wait)

        return Place(self.name, path, open_one)

    def console(self) -> socket.socket:
        """Return a connection to a Linux guest's console: first the end of what it has said, then both ways as typed.

        It doesn't block. Raises AgentError.
        """
        from hostd.agent import console

        return console.connect(ClusterDirectory(self.cluster.name).guests / f"{self.name}.console.sock", self.name)

    def start(self) -> None:
        """Start it again after it has ended; return when it runs. Raises ControlError: it runs already, or can't."""
        self.cluster.call("start", guests=[self.name])

    def stop(self, *, grace: float = 10.0) -> None:
        """Stop it for good: a Linux guest in good order in `grace` seconds if its agent answers, then by force."""
        self.cluster.call("stop", timeout=30 + grace, guests=[self.name], grace=grace)

    def kill(self) -> None:
        """Kill its process; its restart policy says whether it starts again."""
        self.cluster.call("kill", guests=[self.name])


class Network:
    """A network of a background cluster: what `hostd ps` and `hostd inspect` tell of it."""

    def __init__(self, cluster: BackgroundCluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    @property
    def full_name(self) -> str:
        """CLUSTER/NETWORK, as `net.attach` and `hostd net` call it."""
        return f"{self.cluster.name}/{self.name}"

    @property
    def addresses(self) -> dict[str, IPv4Address]:
        """The addresses of its guests, by name; empty if it has no subnet."""
        ports = {guest["name"]: guest["networks"].get(self.name) for guest in self.cluster.ps()["guests"]}
        return {name: IPv4Address(port["address"]) for name, port in ports.items() if port and port["address"]}

    @property
    def macs(self) -> dict[str, bytes]:
        """The MAC addresses of its guests, by name."""
        ports = {guest["name"]: guest["networks"].get(self.name) for guest in self.cluster.ps()["guests"]}
        return {name: bytes.fromhex(port["mac"].replace(":", "")) for name, port in ports.items() if port}

    def show(self) -> dict[str, Any]:
        """All that is known of it: how its switch process stands, and in "switch" its ports, counters and addresses."""
        known: dict[str, Any] = self.cluster.call("inspect")["networks"][self.name]
        return known


class BackgroundCluster:
    """A cluster that runs in the background, whether or not this object, or its supervisor, lives on.

    Methods raise ControlError for what the supervisor refuses, NoSuchClusterError once the cluster is gone.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._client: Client | None = attach(name)

    def call(self, name: str, *, timeout: float | None = 30.0, **arguments: Any) -> Any:
        """Ask the supervisor (docs/control-protocol.md); if it died meanwhile, its successor."""
        if self._client is None:
            self._client = attach(self.name)
        try:
            return self._client.call(name, timeout=timeout, **arguments)
        except ConnectionLostError:
            self.close()
            self._client = attach(self.name)
            return self._client.call(name, timeout=timeout, **arguments)

    @property
    def guests(self) -> dict[str, Guest]:
        return {guest["name"]: Guest(self, guest["name"]) for guest in self.ps()["guests"]}

    @property
    def networks(self) -> dict[str, Network]:
        return {network["name"]: Network(self, network["name"]) for network in self.ps()["networks"]}

    def ps(self) -> dict[str, Any]:
        """Return the cluster and the state of its guests, as `hostd ps --json` prints it."""
        answer: dict[str, Any] = self.call("ps")
        return answer

    def result(self) -> Result:
        """Return the result as far as the guests have come."""
        return Result(self.call("result"))

    def wait(self, *guests: str, timeout: float | None = None) -> Result:
        """Wait until `guests` (default: all) have ended, at most `timeout` seconds; return the result."""
        return Result(self.call("wait", timeout=timeout, guests=list(guests)))

    def region(self, name: str, *, readonly: bool = False) -> shm.Region:
        """Join the region `name` of this cluster, with the same channels as a guest."""
        import shm

        return shm.Region.open(f"{self.name}/{name}", readonly=readonly)

    def down(self) -> None:
        """End the cluster; return when nothing of it is left."""
        if self._client is None:
            self._client = attach(self.name)
        take_down(self._client)
        self.close()

    def close(self) -> None:
        """Let go of the connection; the cluster runs on."""
        if self._client is not None:
            self._client.close()
            self._client = None


class Host:
    """This machine. A context manager: leaving it closes connections; background clusters run on."""

    def __init__(self) -> None:
        self._clusters: list[BackgroundCluster] = []

    def run(self, file: File, *, overrides: Sequence[str] = ()) -> Result:
        """Run a cluster in the foreground; return its result. `overrides` are as in `--set`.

        Raises ClusterFileError, ImageError, BuildError, SupervisorError, ShmError or OSError when it can't be started.
        """
        from hostd.supervisor.foreground import run

        return Result(run(load(file, overrides)))

    def up(self, file: File, *, overrides: Sequence[str] = ()) -> BackgroundCluster:
        """Bring a cluster up in the background; return when its guests have been started. Raises as `run` does."""
        cluster = load(file, overrides)
        start(cluster)
        return self.attach(cluster.name)

    def run_from(self, template: str, count: int | None = None, *, overrides: Sequence[str] = ()) -> Result:
        """Run a cluster of one guest, or of `count`, from a template. Raises TemplateError and as `run` does."""
        from hostd.supervisor.foreground import run
        from hostd.templates import find
        from hostd.templates.clusters import cluster_of

        return Result(run(cluster_of(find(template), count, overrides)))

    def up_from(self, template: str, count: int | None = None, *, overrides: Sequence[str] = ()) -> BackgroundCluster:
        """Bring such a cluster up in the background, as `up` does. Raises TemplateError and as `up` does."""
        from hostd.templates import find
        from hostd.templates.clusters import cluster_of

        cluster = cluster_of(find(template), count, overrides)
        start(cluster)
        return self.attach(cluster.name)

    def attach(self, name: str) -> BackgroundCluster:
        """Return the background cluster `name`. Raises NoSuchClusterError."""
        self._clusters.append(BackgroundCluster(name))
        return self._clusters[-1]

    def clusters(self) -> list[BackgroundCluster]:
        """Return the clusters that run."""
        found = []
        for name in cluster_names():
            with contextlib.suppress(SupervisorError):
                found.append(self.attach(name))
        return found

    def close(self) -> None:
        """Close all connections."""
        for cluster in self._clusters:
            cluster.close()
        self._clusters.clear()

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def take_down(client: Client, *, timeout: float = 60.0) -> None:
    """End the cluster of the supervisor at the other end; return when its process is gone. Raises ControlError."""
    process = client.hello.get("process")
    client.call("down")
    deadline = time.monotonic() + timeout
    while alive(process):
        if time.monotonic() > deadline:
            raise ControlError(f"the supervisor (process {client.hello.get('process')}) doesn't end; kill it")
        time.sleep(0.01)
