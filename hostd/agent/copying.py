"""Copies between this host and guests, and between guests: records over the agents' streams."""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from guestlib.linux import protocol
from guestlib.linux.protocol import Type
from hostd.agent.link import AgentError, error_of
from hostd.agent.records import Reading, Writing
from hostd.agent.remote import RemoteStream

Progress = Callable[[int], None]
"""told how many bytes more have been copied"""
Open = Callable[[Type, bytes], Awaitable[RemoteStream]]
"""opens a stream of a guest"""


@dataclass(frozen=True)
class Copied:
    """What a copy came to; `skipped` are devices, pipes and sockets, which are left out."""

    files: int
    size: int
    """bytes in files"""
    skipped: int


@dataclass(frozen=True)
class Place:
    """A path in a guest."""

    guest: str
    path: str
    open: Open

    @property
    def name(self) -> str:
        """What a copy of it is called in a folder."""
        return posixpath.basename(self.path.rstrip("/")) or self.guest

    def payload(self, name: str | None = None) -> bytes:
        """Return what opens a copy from it, or to it of what is called `name`. Raises AgentError."""
        for text in (self.path, name or ""):
            if "\0" in text or len(os.fsencode(text)) > protocol.MAX_PATH:
                raise AgentError(f"{self.guest}:{text!r}: is no path")
        if not self.path.startswith("/"):
            raise AgentError(f"{self.guest}:{self.path}: is no absolute path, and a guest knows no other")
        texts = [os.fsencode(self.path)] if name is None else [os.fsencode(self.path), os.fsencode(name)]
        return protocol.COPY.pack(0) + protocol.strings(*texts)


async def copy_in(source: Path, place: Place, progress: Progress = lambda _: None) -> Copied:
    """Copy a file or folder of this host to a place in a guest. Raises AgentError, ControlError and OSError."""
    source.stat()  # Before the guest is asked.
    reading = Reading(source)
    chunks = reading.chunks()
    name = os.path.basename(os.path.abspath(source)) or "root"
    async with await place.open(Type.PUT, place.payload(name)) as stream:

        async def give() -> None:
            while (data := await asyncio.to_thread(next, chunks, None)) is not None:
                await stream.send(data)
                progress(len(data))
            await stream.control(Type.EOF)

        await _with(give(), _done(place, stream))
    return Copied(reading.files, reading.size, reading.skipped)


async def copy_out(place: Place, destination: Path, progress: Progress = lambda _: None) -> Copied:
    """Copy a file or folder of a guest to this host. Raises AgentError, ControlError and OSError."""
    with Writing(destination, place.name) as writing:
        async with await place.open(Type.GET, place.payload()) as stream:

            async def take(data: bytes) -> None:
                await asyncio.to_thread(writing.feed, data)
                progress(len(data))

            skipped = await _records(place, stream, take)
            writing.finish()
            return Copied(writing.files, writing.size, skipped)


async def copy_across(source: Place, place: Place, progress: Progress = lambda _: None) -> Copied:
    """Copy from one guest to another; nothing of it is kept here. Raises AgentError and ControlError."""
    async with await source.open(Type.GET, source.payload()) as outward:
        async with await place.open(Type.PUT, place.payload(source.name)) as inward:
            skipped = 0

            async def take(data: bytes) -> None:
                await inward.send(data)
                progress(len(data))

            async def give() -> None:
                nonlocal skipped
                skipped = await _records(source, outward, take)
                await inward.control(Type.EOF)

            files, size = await _with(give(), _done(place, inward))
            return Copied(files, size, skipped)


async def _records(place: Place, stream: RemoteStream, take: Callable[[bytes], Awaitable[None]]) -> int:
    """Give the bytes of a GET to `take`; return how many files the guest left out."""
    while True:
        kind, payload = await stream.receive()
        if kind == Type.DATA:
            await take(payload)
        elif kind == Type.DONE:
            skipped: int = protocol.DONE.unpack(payload)[2]
            return skipped
        elif kind == Type.ERROR:
            raise _complaint(place, payload)


async def _done(place: Place, stream: RemoteStream) -> tuple[int, int]:
    """Wait until a PUT is complete; return the files and bytes that the guest counted."""
    while True:
        kind, payload = await stream.receive()
        if kind == Type.DONE:
            files, size, _ = protocol.DONE.unpack(payload)
            return files, size
        if kind == Type.ERROR:
            raise _complaint(place, payload)


def _complaint(place: Place, payload: bytes) -> AgentError:
    error = error_of(payload)
    if not error.code:  # The supervisor's, which names the guest.
        return error
    return AgentError(
        f"{place.guest}:{error}" if str(error)[:1] == "/" else f"guest {place.guest}: {error}", error.code
    )


async def _with(giving: Awaitable[None], done: Awaitable[tuple[int, int]]) -> tuple[int, int]:
    """Wait for `done` while `giving` goes on; whichever fails ends both."""
    given, result = asyncio.ensure_future(giving), asyncio.ensure_future(done)
    try:
        await asyncio.wait({given, result}, return_when=asyncio.FIRST_COMPLETED)
        # The guest's own word comes first: who sends may only have noticed that nobody takes it.
        if not result.done():
            await given
        return await result
    finally:
        for task in (given, result):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
