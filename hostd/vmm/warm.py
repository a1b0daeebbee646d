"""The warm parent of a cluster's guests: one Python process, everything imported, that forks a guest when asked.

A fork costs about a millisecond, and what was imported before it is shared by all guests (`gc.freeze` keeps the collector
from writing to it). The warm parent is also who notices that a supervisor died: in the foreground it then ends the guests
and removes what the run left; in the background it stays with its guests and waits for the next supervisor.

Messages (SOCK_SEQPACKET, msgpack; descriptors beside the bytes):
  to it    {"configure": {"directory", "foreground", "cleanup"}}, {"start": spec} + descriptors, {"quit": True}
  from it  {"children": {name: pid}}, {"started", "pid"}, {"failed", "error"}, {"exited", "pid", "status"}
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import posix_ipc

from hostd.vmm import process

MESSAGE_LIMIT = 1 << 20
DESCRIPTOR_LIMIT = 253  # SCM_MAX_FD
SOCKET_NAME = "warm.sock"


def spawn(directory: str, *, foreground: bool, cleanup: list[str]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a warm parent for the cluster in `directory`; return the socket to it and its process.

    `cleanup` lists what it removes when a foreground supervisor dies: paths (folders with all in them), or "shm:NAME".
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-m", "hostd.vmm.warm", str(theirs.fileno())],
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
    """The state and the loop of one warm parent."""

    def __init__(self, link: socket.socket) -> None:
        self.link: socket.socket | None = link
        self.listener: socket.socket | None = None
        self.directory = ""
        self.foreground = True
        self.cleanup: list[str] = []
        self.children: dict[int, str] = {}
        self.untold: list[dict[str, Any]] = []
        """ends of guests that no supervisor has heard of yet"""
        self.selector = selectors.DefaultSelector()
        self.selector.register(link, selectors.EVENT_READ)
        self.wake, wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.wake_end = wake_end
        self.selector.register(self.wake, selectors.EVENT_READ)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serve until told to quit, or until there is nobody left to serve."""
        while self.link is not None or self.children:
            for key, _ in self.selector.select():
                if key.fd == self.wake:
                    os.read(self.wake, 4096)
                    self._reap()
                elif self.listener is not None and key.fileobj is self.listener:
                    self._welcome()
                elif not self._receive():
                    return
        if self.listener is not None:
            Path(self.directory, SOCKET_NAME).unlink(missing_ok=True)

    def _receive(self) -> bool:
        """Handle one message; return False to end the process."""
        assert self.link is not None
        try:
            data, descriptors, _flags, _address = socket.recv_fds(self.link, MESSAGE_LIMIT, DESCRIPTOR_LIMIT)
        except ConnectionError:
            data, descriptors = b"", []
        if not data:
            return self._supervisor_gone()
        message = msgpack.unpackb(data)
        if "start" in message:
            self._start(message["start"], descriptors)
        elif "configure" in message:
            configuration = message["configure"]
            self.directory, self.foreground = configuration["directory"], configuration["foreground"]
            self.cleanup = configuration["cleanup"]
        elif "quit" in message:
            return False
        return True

    def _start(self, spec: dict[str, Any], descriptors: list[int]) -> None:
        name = spec["name"]
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"failed": name, "error": f"guest {name}: cannot fork its process: {error.strerror}"})
        else:
            if pid == 0:
                self._become_guest(spec, descriptors)
            self.children[pid] = name
            self._tell({"started": name, "pid": pid})
        for descriptor in descriptors:
            os.close(descriptor)

    def _become_guest(self, spec: dict[str, Any], descriptors: list[int]) -> None:
        status = 70
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            self.selector.close()
            for end in (self.link, self.listener):
                if end is not None:
                    end.close()
            os.close(self.wake)
            os.close(self.wake_end)
            status = process.main(spec, descriptors)
        finally:
            os._exit(status)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid in self.children:
                    self._tell({"exited": self.children.pop(pid), "pid": pid, "status": status})

    def _tell(self, message: dict[str, Any]) -> None:
        if self.link is None:
            self.untold.append(message)
            return
        with contextlib.suppress(OSError):  # Its end is noticed by the next receive.
            self.link.send(msgpack.packb(message))

    def _supervisor_gone(self) -> bool:
        assert self.link is not None
        self.selector.unregister(self.link)
        self.link.close()
        self.link = None
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
            self.selector.register(self.listener, selectors.EVENT_READ)
        return True

    def _welcome(self) -> None:
        """Take the next supervisor; a second one at the same time is turned away."""
        assert self.listener is not None
        link, _ = self.listener.accept()
        if self.link is not None:
            link.close()
            return
        self.link = link
        self.selector.register(link, selectors.EVENT_READ)
        self._tell({"children": {name: pid for pid, name in self.children.items()}})
        untold, self.untold = self.untold, []
        for message in untold:
            self._tell(message)

    def _sweep(self) -> None:
        """End the guests and remove what the run made: its supervisor was killed and can't."""
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self.children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        for item in self.cleanup:
            if item.startswith("shm:"):
                with contextlib.suppress(posix_ipc.Error):
                    posix_ipc.unlink_shared_memory(item.removeprefix("shm:"))
            elif Path(item).is_dir():
                shutil.rmtree(item, ignore_errors=True)
            else:
                Path(item).unlink(missing_ok=True)


def main() -> None:
    """Serve the supervisor at the other end of the socket whose descriptor is the only argument."""
    link = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = WarmParent(link)
    gc.collect()
    gc.freeze()
    parent.serve()


if __name__ == "__main__":
    main()
