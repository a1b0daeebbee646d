"""The process of one network's switch: `python -m net.server FD` (started by net.process, asked by net.client).

FD is a connected Unix stream socket. What comes there first is the configuration, one frame (net/wire.py):
{"cluster", "network", "mtu", "age", "spin", "addresses", "cpu", "lifeline"}, of which all but the names have defaults.
The process then serves its control socket, RUNTIME/net/CLUSTER/NETWORK/control, and says hello on FD, which from there
on is a connection to the control socket like any other. If it can't start, FD gets {"error": SENTENCE} instead, and the
status is 1.

With `lifeline` (the default) it ends when FD is closed at the other end, and when its starter dies. It ends also when
it is told `stop`, and by SIGTERM. Whichever it is, its sockets and its folder are gone then. SIGINT and SIGHUP are a
terminal's, and its starter's to judge.

The protocol. The switch speaks first, to everybody who connects:
    {"ok": {"version": 1, "cluster", "network", "mtu", "pid"}}
then for each request, {"op": NAME, ...} with descriptors by SCM_RIGHTS, one answer: {"ok": RESULT} or
{"error": SENTENCE}. The next request is sent after the answer. Ops (net/requests.py makes them, docs/network.md has
their fields):
    show                            everything: ports with counters and state, addresses, captures
    add_ring   name region out in   a ring port; descriptors: the region's memory, its bells. What lies where in it
                                    is its owner's word, as the region's own directory could have been written to
    add_vhost  name                 a vhost-user port; its socket's path is in the answer
    add_tap, add_packet  name interface netns
                                    an uplink's port
               each with mac uplink isolated rate offloads, and hold: the port is removed when the connection ends
    remove     name
    capture    region channel ports macs snap       copies of frames into a ring, as long as the connection lives
    stop                            answers, then ends
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import selectors
import signal
import socket
import struct
import sys
from collections import deque
from typing import Any

from net import wire
from net.errors import NetError
from shm.errors import ShmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from net.service import Service

CONNECTIONS = 64
CONFIGURATION_TIMEOUT = 30.0
PROCESS_ID = struct.Struct("iII")
"""process, user and group of a socket's other end"""


class Connection:
    """One who asks."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.incoming = wire.Incoming(wire.REQUEST_LIMIT)
        self.requests: deque[wire.Received] = deque()
        """come, but not begun"""
        self.unsent = bytearray()
        self.refused = False
        """nothing more is read of it; it gets what is unsent"""
        self.open = True


class Server:
    """The control socket of `service`: one thread, which nobody who asks can hold up."""

    def __init__(self, service: Service, starter: socket.socket, signals: int) -> None:
        self._service = service
        self._selector = selectors.DefaultSelector()
        self._connections: set[Connection] = set()
        self._listener = service.folder.listen(CONNECTIONS)
        self._signals = signals
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(signals, selectors.EVENT_READ)
        self._lifeline: Connection | None = None
        self._starter: int | None = None
        """descriptor of the process that has the lifeline, and whose children may have inherited it"""
        if service.lifeline:
            self._starter = _process_of(starter)
            service.stopping = self._starter is None
            if self._starter is not None:
                self._selector.register(self._starter, selectors.EVENT_READ)
        first = self._welcome(starter)
        if service.lifeline:
            self._lifeline = first
            service.stopping |= not first.open

    def run(self) -> None:
        """Serve until the end: of those who sent several requests one at a time, in turn."""
        busy: list[Connection] = []
        while not self._service.stopping:
            for key, events in self._selector.select(0 if busy else None):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in (self._signals, self._starter):
                    self._service.stopping = True
                elif events & selectors.EVENT_WRITE:
                    self._flush(key.data)
                else:
                    self._receive(key.data)
            for connection in list(self._connections):
                if connection.requests and not connection.unsent and not self._service.stopping:
                    self._serve(connection)
            busy = [one for one in self._connections if one.requests and not one.unsent]

    def close(self) -> None:
        """Close and remove everything."""
        for connection in list(self._connections):
            self._drop(connection)
        self._listener.close()
        self._service.close()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return
        if len(self._connections) < CONNECTIONS:
            self._welcome(peer)
            return
        with peer, contextlib.suppress(OSError):
            peer.setblocking(False)
            text = f"network {self._service.name}: {CONNECTIONS} connections are open already; close some"
            peer.send(wire.pack({"error": text}))

    def _turn_away(self) -> None:
        """Take one who waits, for whom there is no descriptor, by the spare one, or he would wake us for ever."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _welcome(self, peer: socket.socket) -> Connection:
        peer.setblocking(False)
        connection = Connection(peer)
        self._connections.add(connection)
        self._selector.register(peer, selectors.EVENT_READ, connection)
        self._answer(connection, {"ok": {"version": wire.VERSION, **self._service.hello()}})
        return connection

    def _receive(self, connection: Connection) -> None:
        try:
            requests = connection.incoming.receive(connection.peer)
        except BlockingIOError:
            return
        except wire.WireError as error:
            connection.refused = True
            self._answer(connection, {"error": f"network {self._service.name}: {error}"})
            return
        except OSError:
            requests = None
        if requests is None:
            self._drop(connection)
            return
        connection.requests += requests
        self._watch(connection)

    def _serve(self, connection: Connection) -> None:
        """Do what the next request asks."""
        request = connection.requests.popleft()
        try:
            self._answer(connection, self._result(request, connection))
        finally:
            wire.close(request.descriptors)

    def _result(self, request: wire.Received, connection: Connection) -> wire.Message:
        where = f"network {self._service.name}: {request.message.get('op')}"
        try:
            if request.lost:
                raise NetError(f"{where}: its descriptors did not all come; at most {wire.DESCRIPTORS} can")
            return {"ok": self._service.call(request.message, request.descriptors, connection)}
        except (NetError, ShmError) as error:
            return {"error": str(error)}
        except OSError as error:
            return {"error": f"{where}: {error}"}
        except Exception as error:  # A fault of ours ends no network: it is told, and forwarding goes on.
            import traceback

            traceback.print_exc()
            return {"error": f"{where}: failed: {error!r}"}

    def _answer(self, connection: Connection, answer: wire.Message) -> None:
        connection.unsent += wire.pack(answer)
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        if not connection.open:
            return
        try:
            while connection.unsent:
                del connection.unsent[: connection.peer.send(connection.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
            return
        if connection.refused and not connection.unsent:
            self._drop(connection)
            return
        self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        """Wait for what is due: its reading of an answer, or its next request if there is none to do."""
        wanted = selectors.EVENT_WRITE if connection.unsent else 0 if connection.requests else selectors.EVENT_READ
        key = self._selector.get_map().get(connection.peer)
        if key is not None and not wanted:
            self._selector.unregister(connection.peer)
        elif key is None and wanted:
            self._selector.register(connection.peer, wanted, connection)
        elif key is not None and key.events != wanted:
            self._selector.modify(connection.peer, wanted, connection)

    def _drop(self, connection: Connection) -> None:
        if not connection.open:
            return
        connection.open = False
        self._connections.discard(connection)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection.peer)
        connection.peer.close()
        connection.incoming.close()
        for request in connection.requests:
            wire.close(request.descriptors)
        connection.requests.clear()
        self._service.drop(connection)
        if connection is self._lifeline:
            self._service.stopping = True


def _process_of(connection: socket.socket) -> int | None:
    """Return a descriptor of the process that made a connected pair of sockets; None if it is no more."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PROCESS_ID.size)
    try:
        return os.pidfd_open(PROCESS_ID.unpack(found)[0])
    except OSError:
        return None


def _configuration(starter: socket.socket) -> dict[str, Any]:
    """Return what comes first. Raises WireError, OSError."""
    starter.settimeout(CONFIGURATION_TIMEOUT)
    incoming = wire.Incoming(wire.REQUEST_LIMIT)
    received: list[wire.Received] | None = []
    while not received:
        received = incoming.receive(starter)
        if received is None:
            raise wire.WireError("the configuration did not come")
    return received[0].message


def _prepare() -> int:
    """Return a descriptor that is readable when a signal has come that ends the process; the others are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signals, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return signals


def main(arguments: list[str]) -> int:
    """Be the switch that comes to be known on the descriptor; return the status."""
    if len(arguments) != 1 or not arguments[0].isdecimal():
        print("net.server: it takes the number of a descriptor; hostd starts it (net/process.py)", file=sys.stderr)
        return 2
    try:
        starter = socket.socket(fileno=int(arguments[0]))
    except OSError as error:
        print(f"net.server: descriptor {arguments[0]}: {error.strerror}", file=sys.stderr)
        return 2
    starter.set_inheritable(False)
    signals = _prepare()
    try:
        configuration = _configuration(starter)
        from net.service import Service

        service = Service(configuration)
        try:
            service.start()
            server = Server(service, starter, signals)
        except BaseException:
            service.close()
            raise
    except (NetError, ShmError, OSError) as error:
        with contextlib.suppress(OSError):
            starter.sendall(wire.pack({"error": str(error)}))
        return 1
    try:
        server.run()
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
