"""One debugger's session with one guest: gdb's packets, answered.

"Debugging with GDB", appendix "GDB Remote Serial Protocol": sections Packets, Stop Reply Packets, General Query Packets
A thread is a vCPU, numbered from 1.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from xml.sax.saxutils import quoteattr

from hostd.gdb.breakpoints import Kind, Point
from hostd.gdb.control import SIGSEGV, Stop, UnsupportedError
from hostd.gdb.debugger import Debugger, Result
from hostd.gdb.packets import PACKET_SIZE, PacketReader, Signal, escape, packet, unescape
from hostd.gdb.registers import description

SIGINT, SIGTRAP, SIGKILL = 2, 5, 9
EFAULT = b"E0e"
EINVAL = b"E16"
OK = b"OK"
MEMORY_AT_ONCE = PACKET_SIZE // 2 - 64
LONGEST_WATCH = 1 << 20
KINDS = {kind.value: kind for kind in Kind}
STEP_ONCE = range(0)
OFFERS = "qXfer:features:read+;qXfer:threads:read+;swbreak+;hwbreak+;vContSupported+;QStartNoAckMode+"

Kill = Callable[[], None]


class Session:
    """Serves the debugger at the other end of `link` until it detaches or goes, or the guest ends.

    `kill` ends the guest.
    """

    def __init__(self, debugger: Debugger, link: socket.socket, kill: Kill) -> None:
        self._debugger = debugger
        self._link = link
        self._kill = kill
        self._reader = PacketReader()
        self._acknowledging = True
        self._last = b""
        """the last packet sent, until it is acknowledged"""
        self._open = True
        self._running = False
        self._thread = 0
        """the vCPU that memory and registers are asked of"""
        self._stopped = Stop(0, SIGTRAP)
        self._ended: Result | None = None

    def serve(self) -> None:
        """Answer until the session is over. Leaves the guest to run on, with nothing left in it."""
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        poll.register(self._debugger.wake, select.POLLIN)
        try:
            while self._open:
                for descriptor, _ in poll.poll():
                    if descriptor == self._debugger.wake:
                        self._woken()
                    elif self._open:
                        self._receive()
        except OSError:  # The debugger has gone, or KVM refuses: the guest goes on.
            pass
        finally:
            self._debugger.close()

    # --- the wire ---

    def _receive(self) -> None:
        data = self._link.recv(65536)
        if not data:
            self._open = False
        for item in self._reader.feed(data):
            if item is Signal.INTERRUPT:
                self._interrupt()
            elif item is Signal.RESEND or (item is Signal.DAMAGED and self._acknowledging):
                self._link.sendall(self._last if item is Signal.RESEND else b"-")
            elif isinstance(item, bytes) and self._open:
                self._answer(item)

    def _send(self, data: bytes) -> None:
        self._last = packet(data)
        self._link.sendall(self._last)

    def _answer(self, data: bytes) -> None:
        if self._acknowledging:
            self._link.sendall(b"+")
        name = data[:1]
        if self._running and data not in (b"k", b"D", b"vCtrlC"):  # A debugger waits for the stop.
            return
        handler = HANDLERS.get(name)
        try:
            reply = b"" if handler is None else handler(self, data[1:])
        except UnsupportedError:
            reply = b""
        except (ValueError, IndexError, OverflowError):
            reply = EINVAL
        except OSError:
            reply = EFAULT
        if reply is not None:
            self._send(reply)
        if data == b"QStartNoAckMode":
            self._acknowledging = False

    # --- stops ---

    def _woken(self) -> None:
        try:
            os.eventfd_read(self._debugger.wake)
        except BlockingIOError:
            return
        # A stop may have been told already, by what an interruption found.
        if self._running and self._debugger.stops:
            self._stop(None)

    def _interrupt(self) -> None:
        """Ctrl-C: stop, unless the guest has just done so by itself."""
        if self._running:
            self._stop(Stop(self._thread, SIGINT))

    def _stop(self, otherwise: Stop | None) -> None:
        what = self._debugger.take_stop()
        self._debugger.halt()
        what = what or self._debugger.take_stop() or otherwise
        if what is None:  # A wake-up for a stop that was dropped: no vCPU has anything to say.
            what = Stop(self._thread, SIGINT)
        self._running = False
        if isinstance(what, Stop):
            self._stopped, self._thread = what, what.index
            self._debugger.look_as(what.index)
        else:
            self._ended, self._open = what, False
        self._send(self._why(b""))

    def _why(self, _: bytes) -> bytes:
        """?"""
        if self._ended is not None:
            code = self._ended["code"] or 0
            if self._ended["outcome"] in ("exit", "reboot"):
                return b"W%02x" % (code & 255)
            return b"X%02x" % (SIGSEGV if self._ended["outcome"] == "fault" else SIGKILL)
        stop = self._stopped
        reason = f"{stop.reason};" if stop.reason else ""
        return f"T{stop.signal:02x}thread:{stop.index + 1:x};{reason}".encode()

    # --- running ---

    def _resume(self, steps: dict[int, range | None], signal: int = 0) -> None:
        deserved = self._stopped.fault and signal not in (0, SIGINT, SIGTRAP)
        passing = {self._stopped.index} if deserved else set()
        self._running = True
        self._debugger.resume(steps, passing)

    def _continue(self, data: bytes) -> None:
        """c [addr]"""
        self._jump(data)
        self._resume(dict.fromkeys(self._debugger.vcpus))

    def _continue_with(self, data: bytes) -> None:
        """C sig[;addr]"""
        signal, _, address = data.partition(b";")
        number = int(signal, 16)
        self._jump(address)
        self._resume(dict.fromkeys(self._debugger.vcpus), number)

    def _step(self, data: bytes) -> None:
        """s [addr]"""
        self._jump(data)
        self._resume({self._thread: STEP_ONCE})

    def _step_with(self, data: bytes) -> None:
        """S sig[;addr]"""
        self._step(data.partition(b";")[2])

    def _jump(self, address: bytes) -> None:
        if address:
            from hostd.gdb.registers import RIP

            self._debugger.registers(self._thread).write(RIP, int(address, 16).to_bytes(8, "little"))

    def _actions(self, data: bytes) -> None:
        """;action[:thread]...: what follows vCont; the leftmost that is meant for a thread counts."""
        steps: dict[int, range | None] = {}
        signal = 0
        for part in data.split(b";")[1:]:
            action, _, who = part.partition(b":")
            threads = self._threads(who) if who else list(self._debugger.vcpus)
            step: range | None = None
            if action[:1] == b"r":
                first, last = action[1:].split(b",")
                step = range(int(first, 16), int(last, 16))
            elif action[:1] in (b"s", b"S"):
                step = STEP_ONCE
            elif action[:1] not in (b"c", b"C"):
                raise ValueError("an action that is not offered")
            if action[:1] in (b"C", b"S") and self._stopped.index in threads and self._stopped.index not in steps:
                signal = int(action[1:], 16)
            for thread in threads:
                steps.setdefault(thread, step)
        if not steps:
            raise ValueError("no thread is meant")
        self._resume(steps, signal)

    def _detach(self, _: bytes) -> bytes:
        """D"""
        self._debugger.halt()
        self._open = False
        return OK

    def _end_guest(self, _: bytes) -> None:
        """k"""
        self._open = False
        self._kill()

    # --- threads ---

    def _threads(self, text: bytes) -> list[int]:
        """Return the vCPUs that a thread-id means: -1 all, 0 any. Raises ValueError."""
        number = -1 if text == b"-1" else int(text, 16)
        if number == -1:
            return list(self._debugger.vcpus)
        if number == 0:
            return [self._thread]
        return [self._debugger.vcpus[number - 1]]

    def _choose(self, data: bytes) -> bytes:
        """H op thread-id"""
        [*_, thread] = self._threads(data[1:]) if data[1:] != b"-1" else [self._thread]
        if data[:1] == b"g":
            self._thread = thread
            self._debugger.look_as(thread)
        return OK

    def _alive(self, data: bytes) -> bytes:
        """T thread-id"""
        self._threads(data)
        return OK

    def _name(self, index: int) -> str:
        from hostd.gdb.registers import REGISTERS

        cs = next(number for number, register in enumerate(REGISTERS) if register.name == "cs")
        ring = (self._debugger.registers(index).read(cs) or b"\0")[0] & 3
        return f"vCPU {index}, ring {ring}"

    def _threads_document(self) -> str:
        lines = (
            f'<thread id="{index + 1:x}" core="{index}" name={quoteattr(self._name(index))}/>'
            for index in self._debugger.vcpus
        )
        return f'<?xml version="1.0"?>\n<threads>{"".join(lines)}</threads>\n'

    # --- registers ---

    def _read_registers(self, _: bytes) -> bytes:
        """g"""
        from hostd.gdb.registers import REGISTERS

        values = self._debugger.registers(self._thread).read_all()
        return b"".join(
            b"xx" * (register.bits // 8) if value is None else value.hex().encode()
            for register, value in zip(REGISTERS, values, strict=True)
        )

    def _write_registers(self, data: bytes) -> bytes:
        """G XX..."""
        self._debugger.registers(self._thread).write_all(bytes.fromhex(data.decode("ascii")))
        self._debugger.store()
        return OK

    def _read_register(self, data: bytes) -> bytes:
        """p n"""
        value = self._debugger.registers(self._thread).read(int(data, 16))
        return b"E00" if value is None else value.hex().encode()

    def _write_register(self, data: bytes) -> bytes:
        """P n=r"""
        number, _, value = data.partition(b"=")
        self._debugger.registers(self._thread).write(int(number, 16), bytes.fromhex(value.decode("ascii")))
        self._debugger.store()
        self._debugger.look_as(self._thread)
        return OK

    # --- memory ---

    def _read_memory(self, data: bytes) -> bytes:
        """m addr,length"""
        address, size = _numbers(data)
        try:
            return self._debugger.memory.read(address, min(size, MEMORY_AT_ONCE)).hex().encode()
        except ValueError:
            return EFAULT

    def _write_memory(self, data: bytes) -> bytes:
        """M addr,length:XX..."""
        where, _, what = data.partition(b":")
        return self._write(where, bytes.fromhex(what.decode("ascii")))

    def _write_binary(self, data: bytes) -> bytes:
        """X addr,length:XX..."""
        where, _, what = data.partition(b":")
        return self._write(where, unescape(what))

    def _write(self, where: bytes, data: bytes) -> bytes:
        address, size = _numbers(where)
        if size != len(data):
            raise ValueError("it is not as long as it says")
        try:
            self._debugger.memory.write(address, data)
        except ValueError:
            return EFAULT
        return OK

    def _insert(self, data: bytes) -> bytes:
        """Z type,addr,kind"""
        point = _point(data)
        try:
            self._debugger.control.insert(point)
        except UnsupportedError:
            raise
        except ValueError:
            return EFAULT
        return OK

    def _remove(self, data: bytes) -> bytes:
        """z type,addr,kind"""
        self._debugger.control.remove(_point(data))
        return OK

    # --- queries ---

    def _query(self, data: bytes) -> bytes:
        """q..."""
        name, separator, arguments = _named(data)
        query = QUERIES.get(name + separator) or QUERIES.get(name)
        return b"" if query is None else query(self, arguments)

    def _offers(self, _: bytes) -> bytes:
        """qSupported:..."""
        return f"PacketSize={PACKET_SIZE:x};{OFFERS}".encode()

    def _current(self, _: bytes) -> bytes:
        """qC"""
        return b"QC%x" % (self._thread + 1)

    def _thread_list(self, _: bytes) -> bytes:
        """qfThreadInfo"""
        return b"m" + b",".join(b"%x" % (index + 1) for index in self._debugger.vcpus)

    def _about_thread(self, thread: bytes) -> bytes:
        """qThreadExtraInfo,thread-id"""
        [index] = self._threads(thread)
        return self._name(index).encode().hex().encode()

    def _command(self, text: bytes) -> bytes:
        """qRcmd,XX...: gdb's `monitor`"""
        command = bytes.fromhex(text.decode("ascii")).decode("utf-8", "replace")
        return self._monitor(command.split()).encode().hex().encode()

    def _document(self, arguments: bytes) -> bytes:
        """Xfer:object:read:annex:offset,length"""
        kind, operation, annex, where = arguments.split(b":")
        documents = {(b"features", b"target.xml"): description, (b"threads", b""): self._threads_document}
        make = documents.get((kind, annex))
        if operation != b"read" or make is None:
            return b"" if kind not in (b"features", b"threads") else b"E00"
        offset, size = _numbers(where)
        document = make().encode()
        part = document[offset : offset + min(size, MEMORY_AT_ONCE)]
        return (b"m" if offset + len(part) < len(document) else b"l") + escape(part)

    def _monitor(self, words: list[str]) -> str:
        """Answer gdb's `monitor`."""
        if len(words) == 2 and words[0] == "where":
            try:
                address = int(words[1], 0)
            except ValueError:
                return f'{words[1]!r} is no number; gdb makes one of a symbol: eval "monitor where %p", &SYMBOL\n'
            gpa = self._debugger.memory.translate(address)
            if gpa is None:
                return f"{address:#x}: nothing is mapped there\n"
            row = next(
                (f", slot {row.name} + {gpa - row.gpa:#x}" for row in self._debugger.memory.rows(address, 1)), ""
            )
            return f"{address:#x}: physical {gpa:#x}{row}\n"
        return "monitor where ADDRESS   the guest physical address of a virtual one, and its slot\n"

    def _set(self, data: bytes) -> bytes:
        """Q..."""
        return OK if data == b"StartNoAckMode" else b""

    def _verbose(self, data: bytes) -> bytes | None:
        """v..."""
        if data == b"Cont?":
            return b"vCont;c;C;s;S;r"
        if data.startswith(b"Cont;"):
            self._actions(data)
            return None
        if data == b"CtrlC":
            self._send(OK)
            self._interrupt()
            return None
        return b""


def _named(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return a query's name, what separates it (a colon, or by old custom a comma), and the rest."""
    at = next((at for at, byte in enumerate(data) if byte in b":,"), len(data))
    return data[:at], data[at : at + 1], data[at + 1 :]


def _numbers(data: bytes) -> tuple[int, int]:
    """Return address and size of "ADDR,LENGTH". Raises ValueError."""
    address, size = (int(part, 16) for part in data.split(b","))
    if not (0 <= address < 1 << 64 and size >= 0):
        raise ValueError("an address has 64 bits")
    return address, size


def _point(data: bytes) -> Point:
    """Return what "TYPE,ADDR,KIND[;...]" means. Raises ValueError, UnsupportedError."""
    number, address, size = data.partition(b";")[0].split(b",")
    kind = KINDS.get(int(number, 16))
    if kind is None:
        raise UnsupportedError("a kind of breakpoint that x86 has not")
    at, length = _numbers(address + b"," + size)
    if kind in (Kind.WRITE, Kind.ACCESS) and not 0 < length <= LONGEST_WATCH:
        raise ValueError("it watches nothing, or too much")
    return Point(kind, at, length if kind in (Kind.WRITE, Kind.ACCESS) else 1)


QUERIES: dict[bytes, Callable[[Session, bytes], bytes]] = {
    b"Supported": Session._offers,
    b"Xfer:": Session._document,
    b"C": Session._current,
    b"Attached": lambda _session, _pid: b"1",
    b"fThreadInfo": Session._thread_list,
    b"sThreadInfo": lambda _session, _: b"l",
    b"ThreadExtraInfo,": Session._about_thread,
    b"Rcmd,": Session._command,
}
"""by name, with its separator where it needs one"""
HANDLERS: dict[bytes, Callable[[Session, bytes], bytes | None]] = {
    b"?": Session._why,
    b"c": Session._continue,
    b"C": Session._continue_with,
    b"s": Session._step,
    b"S": Session._step_with,
    b"D": Session._detach,
    b"k": Session._end_guest,
    b"H": Session._choose,
    b"T": Session._alive,
    b"g": Session._read_registers,
    b"G": Session._write_registers,
    b"p": Session._read_register,
    b"P": Session._write_register,
    b"m": Session._read_memory,
    b"M": Session._write_memory,
    b"X": Session._write_binary,
    b"z": Session._remove,
    b"Z": Session._insert,
    b"q": Session._query,
    b"Q": Session._set,
    b"v": Session._verbose,
}
"""by a packet's first letter"""
