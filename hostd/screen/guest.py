"""The picture of a guest of a cluster that runs, by its supervisor's control socket."""

from __future__ import annotations

from typing import Any, Protocol

from PIL import Image

from hostd.screen.picture import Frame


class Caller(Protocol):
    """A connection to a supervisor."""

    def call(self, name: str, **arguments: Any) -> Any: ...


def frame_of(client: Caller, guest: str) -> Frame:
    """Return where the guest's picture lies. Raises ControlError: it has none, or doesn't run."""
    told = client.call("framebuffer", guest=guest)
    return Frame(told["gpa"], told["width"], told["height"], told["stride"])


def memory_of(client: Caller, guest: str, frame: Frame) -> bytes:
    """Return the bytes of the guest's picture. Raises ControlError."""

    def read(gpa: int, size: int) -> bytes:
        data: bytes = client.call("read", guest=guest, gpa=gpa, size=size)
        return data

    return frame.take(read)


def screenshot(client: Caller, guest: str) -> Image.Image:
    """Return what the guest shows. Raises ControlError."""
    frame = frame_of(client, guest)
    return frame.image(memory_of(client, guest, frame))
