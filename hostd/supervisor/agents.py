"""The agents of a cluster's Linux guests: a link to each, and streams of theirs relayed to who asks for one."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any

from guestlib.linux import protocol
from guestlib.linux.protocol import Type
from hostd.agent.link import CARRYING, AgentError, AgentLink, Stream
from hostd.agent.remote import pack, unpack

if TYPE_CHECKING:
    from hostd.supervisor.directory import ClusterDirectory
    from hostd.supervisor.guest_run import GuestRun, Result

START_LIMIT, SHARE_LIMIT = 30.0, 60.0
HANG_UP_GRACE = 2.0
"""seconds that a command has after SIGHUP when nobody listens to it any more"""
PARTING_LIMIT = 10.0
"""seconds that a client has to read the end of its stream"""
FOLLOWING = {
    Type.EXEC: {Type.DATA, Type.EOF, Type.SIGNAL, Type.RESIZE, Type.CANCEL},
    Type.PUT: {Type.DATA, Type.EOF, Type.CANCEL},
    Type.GET: {Type.CANCEL},
}
"""what a client may send on a stream, by what it began with: anything else would end the agent's whole session"""
SIZES = {Type.SIGNAL: protocol.U32.size, Type.RESIZE: protocol.SIZE.size}


class Agents:
    """The links of one cluster, by guest."""

    def __init__(self, directory: ClusterDirectory) -> None:
        self._directory = directory
        self._links: dict[str, AgentLink] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, run: GuestRun, become: Callable[[], bytes] | None = None) -> None:
        """Connect to the agent of a guest that runs, once; `become`: one of a template's (AgentLink)."""
        if run.plan.group.linux is not None and run.name not in self._links:
            path = self._directory.guests / f"{run.name}.agent.sock"
            link = self._links[run.name] = AgentLink(path, f"guest {run.name}", become)
            self._later(_share_code(run, link))

    def end(self, run: GuestRun) -> None:
        """Let go of the agent of a guest that has ended."""
        link = self._links.pop(run.name, None)
        if link is not None:
            self._later(link.close())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Let go of all."""
        links = [link.close() for link in self._links.values()]
        self._links.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*links, *self._tasks, return_exceptions=True)

    def amend(self, run: GuestRun, result: Result) -> Result:
        """Return a guest's result with the status of its own command, where it powered off because that had ended."""
        link = self._links.get(run.name)
        status = link.result if link is not None else None
        if not status or run.stopping or result["outcome"] != "exit" or result["code"] != 0:
            return result
        return result | {"code": status, "message": f"guest {run.name}: its command ended with status {status}"}

    def describe(self, run: GuestRun) -> dict[str, Any]:
        """Return what `hostd inspect` shows of a guest's agent; nothing if it has none."""
        link = self._links.get(run.name)
        return {} if link is None else {"answers": link.up, "kernel": link.version}

    async def shut_down(self, run: GuestRun, grace: float) -> bool:
        """Ask a guest to end in good order, its processes having `grace` seconds; tell whether it could be asked."""
        link = self._links.get(run.name)
        if link is None or not link.up:
            return False
        try:
            await link.shutdown(grace=grace)
        except AgentError:
            return False
        return True

    async def link(self, run: GuestRun, wait: float) -> AgentLink:
        """Return the link to an agent that answers, after at most `wait` seconds. Raises AgentError."""
        if run.plan.group.linux is None:
            raise AgentError(
                f"guest {run.name}: is a unikernel, which has no agent; commands and copies are for Linux guests"
            )
        link = self._links.get(run.name)
        if link is None:
            raise AgentError(f"guest {run.name}: is not running ({run.state})")
        await link.wait_up(wait)
        return link


async def _share_code(run: GuestRun, link: AgentLink) -> None:
    """Once the guest has started, have its kernel's patched code shared with the others'."""
    with contextlib.suppress(AgentError):  # Without an agent nobody says when that is.
        await link.wait_up(START_LIMIT)
    if run.link is not None and run.state == "running":
        with contextlib.suppress(OSError, TimeoutError):  # It is shared less, no more.
            await run.link.call("share", timeout=SHARE_LIMIT)


async def relay(link: AgentLink, run: GuestRun, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one stream of an agent to a client that has been told so (hostd.agent.remote), until either ends it."""
    stream: Stream | None = None
    kind = Type.EXEC
    try:
        kind, payload = await unpack(reader)
        if kind not in FOLLOWING:
            raise AgentError(f"a stream begins with EXEC, PUT or GET, not with a frame of type {kind}")
        stream = await link.open(kind, payload)
        inward = asyncio.ensure_future(_inward(stream, FOLLOWING[kind], reader, writer))
        outward = asyncio.ensure_future(_outward(stream, writer))
        try:
            await asyncio.wait({inward, outward}, return_when=asyncio.FIRST_COMPLETED)
            if outward.done():
                outward.result()
            else:
                inward.result()
        finally:
            for task in (inward, outward):
                task.cancel()
            await asyncio.gather(inward, outward, return_exceptions=True)
    except (AgentError, ValueError) as error:
        text = str(error)
        if run.result is not None:
            text = f"guest {run.name}: ended: {run.result['message'] or run.result['outcome']}"
        writer.write(pack(Type.ERROR, protocol.ERROR.pack(0) + text.encode()))
    except (OSError, EOFError):
        pass
    finally:
        if stream is not None and not stream.ended:
            await _abandon(stream, hang_up=kind == Type.EXEC)
    await _part(reader, writer)


async def _part(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait for the client to hang up: while it still sends, our end would cost it what it has not read yet."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(PARTING_LIMIT):
            await writer.drain()
            while await reader.read(protocol.MAX_PAYLOAD):
                pass


async def _outward(stream: Stream, writer: asyncio.StreamWriter) -> None:
    """Pass on what the guest sends. A client that is slow stops its own stream only: credit waits for it."""
    while True:
        kind, payload = await stream.receive()
        writer.write(pack(kind, payload))
        await writer.drain()
        if stream.ended and kind not in CARRYING and kind not in (Type.STARTED, Type.EOF):
            return


async def _inward(
    stream: Stream, allowed: Collection[Type], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass on what the client sends; signals overtake input that the guest does not take. Ends when the client goes."""
    waiting: asyncio.Queue[tuple[Type, bytes]] = asyncio.Queue()
    held = 0

    async def pump() -> None:
        nonlocal held
        while True:
            kind, payload = await waiting.get()
            if kind == Type.EOF:
                await stream.control(Type.EOF)
                continue
            await stream.send(payload)
            held -= len(payload)
            writer.write(pack(Type.CREDIT, protocol.U32.pack(len(payload))))

    pumping = asyncio.ensure_future(pump())
    try:
        while True:
            kind, payload = await unpack(reader)
            if kind not in allowed or len(payload) != SIZES.get(kind, len(payload)):
                raise ValueError(f"a frame of type {kind} and {len(payload)} bytes is not for this stream")
            if kind in (Type.DATA, Type.EOF):
                held += len(payload)
                if held > protocol.WINDOW:
                    raise ValueError(f"more than {protocol.WINDOW} bytes were sent ahead")
                waiting.put_nowait((kind, payload))
            else:
                await stream.control(kind, payload)
    finally:
        pumping.cancel()
        with contextlib.suppress(asyncio.CancelledError, AgentError, OSError):
            await pumping


async def _abandon(stream: Stream, *, hang_up: bool) -> None:
    """End a command that nobody listens to any more, as a terminal that is closed does; or forget a copy."""
    with contextlib.suppress(AgentError):
        if hang_up:
            await stream.control(Type.SIGNAL, protocol.U32.pack(signal.SIGHUP))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANG_UP_GRACE):
                    while not stream.ended:
                        await stream.receive()
        await stream.control(Type.CANCEL)
