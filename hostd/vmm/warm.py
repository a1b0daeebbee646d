"""The warm parent of a cluster's guests: one Python process, everything imported, that forks a guest when asked.

A fork costs about a millisecond, and what was imported before it is shared by all guests (`gc.freeze` keeps the
collector from writing to it). The warm parent is also who notices that a supervisor died: in the foreground it then
ends the guests and removes what the run left; in the background it stays with its guests and
waits for the next supervisor.

Messages (SOCK_SEQPACKET, msgpack; descriptors beside the bytes):
  to it    {"configure": {"directory", "foreground", "cleanup"}}, {"start": spec} + descriptors, {"quit": True}
  from it  {"children": {name: pid}}, {"started", "pid"}, {"failed", "error"}, {"exited", "pid", "status"}
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import posix_ipc

from hostd.vmm import heap, process
from hostd.vmm._calls import ffi, lib
from hostd.vmm.memory_group import remove_groups
from hostd.vmm.rehearsal import rehearse
from net.leftovers import remove_networks

MESSAGE_LIMIT = 1 << 20
DESCRIPTOR_LIMIT = 253  # SCM_MAX_FD
SOCKET_NAME = "warm.sock"


def spawn(
    directory: str, *, foreground: bool, cleanup: list[str], linux: bool = False
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a warm parent for the cluster in `directory`; return the socket to it and its process.

    `cleanup` lists what it removes when a foreground supervisor dies: paths (folders with all in them), or "shm:NAME".
    With `linux` it is ready for Linux guests, too.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-m", "hostd.vmm.warm", str(theirs.fileno()), *(["linux"] if linux else [])],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    configuration = {"directory": directory, "foreground": foreground, "cleanup": cleanup}
    ours.send(msgpack.packb({"configure": configuration}))
    return ours, child


def connect(directory: str) -> socket.socket:
    """Return a socket to the warm parent that another supervisor of the cluster in `directory` left.

    Raises OSError when there is none. Its first message is {"children": {name: pid}}.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.connect(str(Path(directory, SOCKET_NAME)))
    except OSError:
        link.close()
        raise
    return link


class WarmParent:
    """The state of one warm parent, and what it does in Python: everything but starting guests (nursery.h)."""

    def __init__(self, link: socket.socket) -> None:
        self.link: socket.socket | None = link
        self.listener: socket.socket | None = None
        self.directory = ""
        self.foreground = True
        self.cleanup: list[str] = []
        self.untold: list[dict[str, Any]] = []
        """ends of guests that no supervisor has heard of yet"""
        self.nursery = ffi.new("struct nursery *")
        self.ended = ffi.new("struct nursery_child *")
        failed = lib.nursery_open(self.nursery, link.fileno())
        if failed:
            raise OSError(-failed, os.strerror(-failed))

    def serve(self) -> None:
        """Serve until told to quit, or until there is nobody left to serve. In a child: never returns."""
        going_on = True
        while going_on and (self.link is not None or self.nursery.count):
            event = lib.nursery_serve(self.nursery)
            if event == lib.NURSERY_CHILD:
                self._become_guest()
            elif event == lib.NURSERY_ENDED:
                self._reap()
            elif event == lib.NURSERY_CALLER:
                self._welcome()
            elif event == lib.NURSERY_NO_FORK:
                self._refuse()
            else:
                going_on = self._receive()
        if self.listener is not None:
            Path(self.directory, SOCKET_NAME).unlink(missing_ok=True)

    def _become_guest(self) -> None:
        status = 70
        try:
            assert self.link is not None
            data, descriptors, _flags, _address = socket.recv_fds(self.link, MESSAGE_LIMIT, DESCRIPTOR_LIMIT)
            spec = msgpack.unpackb(data)["start"]
            del data
            self.link.send(msgpack.packb({"started": spec["name"], "pid": os.getpid()}))
            lib.nursery_born(self.nursery, spec["name"].encode())
            for end in (self.link, self.listener):
                if end is not None:
                    end.close()
            status = process.main(spec, descriptors)
        finally:
            os._exit(status)

    def _receive(self) -> bool:
        """Handle one message; return False to end the process."""
        assert self.link is not None
        try:
            data = self.link.recv(MESSAGE_LIMIT)
        except ConnectionError:
            data = b""
        if not data:
            return self._supervisor_gone()
        message = msgpack.unpackb(data)
        if "configure" in message:
            configuration = message["configure"]
            self.directory, self.foreground = configuration["directory"], configuration["foreground"]
            self.cleanup = configuration["cleanup"]
        if "quit" in message:
            self._end_children()  # None is left, unless the supervisor has lost sight of one.
            return False
        return True

    def _refuse(self) -> None:
        """Answer a request to start that fork could not serve."""
        assert self.link is not None
        data, descriptors, _flags, _address = socket.recv_fds(self.link, MESSAGE_LIMIT, DESCRIPTOR_LIMIT)
        for descriptor in descriptors:
            os.close(descriptor)
        name, why = msgpack.unpackb(data)["start"]["name"], os.strerror(self.nursery.error)
        self._tell({"failed": name, "error": f"guest {name}: cannot fork its process: {why}"})

    def _reap(self) -> None:
        while lib.nursery_reap(self.nursery, self.ended):
            name = ffi.string(self.ended.name).decode()
            self._tell({"exited": name, "pid": self.ended.pid, "status": self.ended.status})

    def _children(self) -> dict[str, int]:
        children = self.nursery.children[0 : self.nursery.count] if self.nursery.count else []
        return {ffi.string(child.name).decode(): child.pid for child in children}

    def _tell(self, message: dict[str, Any]) -> None:
        if self.link is None:
            self.untold.append(message)
            return
        with contextlib.suppress(OSError):  # Its end is noticed by the next receive.
            self.link.send(msgpack.packb(message))

    def _supervisor_gone(self) -> bool:
        assert self.link is not None
        self.link.close()
        self.link, self.nursery.link = None, -1
        if self.foreground:
            self._sweep()
            return False
        if self.listener is None:
            path = Path(self.directory, SOCKET_NAME)
            path.unlink(missing_ok=True)
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.listener.bind(str(path))
            path.chmod(0o600)
            self.listener.listen(1)
            self.nursery.listener = self.listener.fileno()
        return True

    def _welcome(self) -> None:
        """Take the next supervisor; a second one at the same time is turned away."""
        assert self.listener is not None
        link, _ = self.listener.accept()
        if self.link is not None:
            link.close()
            return
        self.link, self.nursery.link = link, link.fileno()
        self._tell({"children": self._children()})
        untold, self.untold = self.untold, []
        for message in untold:
            self._tell(message)

    def _end_children(self) -> None:
        pids = self._children().values()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _sweep(self) -> None:
        """End the guests and remove what the run made: its supervisor was killed and can't."""
        self._end_children()
        remove_groups(self.cleanup)
        remove_networks(self.cleanup)
        for item in self.cleanup:
            if item.startswith("shm:"):
                with contextlib.suppress(posix_ipc.Error):
                    posix_ipc.unlink_shared_memory(item.removeprefix("shm:"))
            elif Path(item).is_dir():
                shutil.rmtree(item, ignore_errors=True)
            else:
                Path(item).unlink(missing_ok=True)


def main() -> None:
    """Serve the supervisor at the other end of the socket whose descriptor is the first argument."""
    link = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rehearse()
    if "linux" in sys.argv[2:]:
        import hostd.vmm.linux  # noqa: F401 (its guests find it imported)
    parent = WarmParent(link)
    gc.collect()
    gc.freeze()
    heap.freeze()
    parent.serve()


if __name__ == "__main__":
    main()
