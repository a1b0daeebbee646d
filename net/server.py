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
import ctypes
import os
import resource
import selectors
import signal
import socket
import sys
from typing import Any

from net import wire
from net.errors import NetError
from shm.errors import ShmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from net.service import Service

CONNECTIONS = 64
UNREAD_LIMIT = 32 << 20
"""bytes of answers that one connection may leave unread"""
CONFIGURATION_TIMEOUT = 30.0
PR_SET_PDEATHSIG = 1


class Connection:
    """One who asks."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.incoming = wire.Incoming(wire.REQUEST_LIMIT)
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
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(signals, selectors.EVENT_READ)
        self._lifeline: Connection | None = None
        first = self._welcome(starter)
        if service.lifeline:
            self._lifeline = first
            service.stopping = not first.open

    def run(self) -> None:
        """Serve until the end."""
        while not self._service.stopping:
            for key, events in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == self._signals:
                    self._service.stopping = True
                else:
                    self._serve(key.data, events)

    def close(self) -> None:
        """Close and remove everything."""
        for connection in list(self._connections):
            self._drop(connection)
        self._listener.close()
        self._service.close()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        if len(self._connections) < CONNECTIONS:
            self._welcome(peer)
            return
        with peer, contextlib.suppress(OSError):
            peer.setblocking(False)
            text = f"network {self._service.name}: {CONNECTIONS} connections are open already; close some"
            peer.send(wire.pack({"error": text}))

    def _welcome(self, peer: socket.socket) -> Connection:
        peer.setblocking(False)
        connection = Connection(peer)
        self._connections.add(connection)
        self._selector.register(peer, selectors.EVENT_READ, connection)
        self._answer(connection, {"ok": {"version": wire.VERSION, **self._service.hello()}})
        return connection

    def _serve(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(connection)
        if not events & selectors.EVENT_READ or not connection.open:
            return
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
        for request, descriptors in requests:
            try:
                if connection.open and not self._service.stopping:
                    self._answer(connection, self._result(request, descriptors, connection))
            finally:
                wire.close(descriptors)

    def _result(self, request: wire.Message, descriptors: list[int], connection: Connection) -> wire.Message:
        try:
            return {"ok": self._service.call(request, descriptors, connection)}
        except (NetError, ShmError) as error:
            return {"error": str(error)}
        except OSError as error:
            return {"error": f"network {self._service.name}: {request.get('op')}: {error}"}

    def _answer(self, connection: Connection, answer: wire.Message) -> None:
        connection.unsent += wire.pack(answer)
        if len(connection.unsent) > UNREAD_LIMIT:
            self._drop(connection)
        else:
            self._flush(connection)

    def _flush(self, connection: Connection) -> None:
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
        reading = 0 if connection.refused else selectors.EVENT_READ
        writing = selectors.EVENT_WRITE if connection.unsent else 0
        self._selector.modify(connection.peer, reading | writing, connection)

    def _drop(self, connection: Connection) -> None:
        if not connection.open:
            return
        connection.open = False
        self._connections.discard(connection)
        self._selector.unregister(connection.peer)
        connection.peer.close()
        connection.incoming.close()
        self._service.drop(connection)
        if connection is self._lifeline:
            self._service.stopping = True


def _configuration(starter: socket.socket) -> dict[str, Any]:
    """Return what comes first. Raises WireError, OSError."""
    starter.settimeout(CONFIGURATION_TIMEOUT)
    incoming = wire.Incoming(wire.REQUEST_LIMIT)
    messages: list[tuple[wire.Message, list[int]]] | None = []
    while not messages:
        messages = incoming.receive(starter)
        if messages is None:
            raise wire.WireError("the configuration did not come")
    return messages[0][0]


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
        if configuration.get("lifeline", True):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
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
