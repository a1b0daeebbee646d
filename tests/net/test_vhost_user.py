"""The vhost-user protocol, message by message, as a front end sees it."""

from __future__ import annotations

import os
import socket
import stat
import struct

import pytest
from vhost_front import (
    EVENT_IDX,
    IN_ORDER,
    INDIRECT,
    MQ,
    MRG_RXBUF,
    MTU,
    NEED_REPLY,
    P_ALL,
    P_MQ,
    P_REPLY_ACK,
    PLAIN,
    PROTOCOL,
    VERSION,
    VERSION_1,
    Link,
    Region,
    wait_until,
)


def test_what_is_offered(lan):
    link = Link(lan.port("a"))
    features = link.number("GET_FEATURES")
    wanted = VERSION_1 | PROTOCOL | MRG_RXBUF | EVENT_IDX | INDIRECT | MQ | MTU | IN_ORDER
    wanted |= 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12  # checksums and TSO, both ways
    wanted |= 1 << 54 | 1 << 55 | 1 << 56  # USO
    assert features & wanted == wanted
    assert not features & (1 << 26 | 1 << 33 | 1 << 34)  # neither a log of writes, nor an IOMMU, nor packed rings
    assert link.number("GET_PROTOCOL_FEATURES") == P_ALL
    assert link.number("GET_QUEUE_NUM") >= 4
    link.send("SET_PROTOCOL_FEATURES", struct.pack("=Q", P_ALL))
    assert link.number("GET_MAX_MEM_SLOTS") >= 32
    link.close()


def test_acknowledgements(lan):
    """Where REPLY_ACK was negotiated, and only there, what asks for it is acknowledged."""
    link = Link(lan.port("a"))
    link.send("SET_OWNER", flags=VERSION | NEED_REPLY)
    assert link.open()  # its answer is the next thing that comes
    link.send("SET_PROTOCOL_FEATURES", struct.pack("=Q", P_REPLY_ACK))
    assert link.acknowledged("SET_OWNER") == 0
    assert link.acknowledged("SET_FEATURES", struct.pack("=Q", PLAIN)) == 0
    assert link.acknowledged("SET_VRING_NUM", struct.pack("=II", 0, 256)) == 0
    link.send("SET_VRING_BASE", struct.pack("=II", 0, 0))
    assert link.open()
    link.close()


def test_a_log_of_writes_is_refused(lan):
    """There is none; a front end that asks for an acknowledgement is told, another one is left."""
    path = lan.port("a")
    with lan.again(path) as nic:
        link = nic.connect()
        fd = os.memfd_create("log")
        assert link.acknowledged("SET_LOG_BASE", struct.pack("=QQ", 4096, 0), [fd]) != 0
        assert link.open()
        link.send("SET_LOG_BASE", struct.pack("=QQ", 4096, 0), [fd])
        assert link.gone()
        os.close(fd)
        lan.nics.clear()


def test_the_mtu(lan):
    link = lan.nic("a").connect()
    assert link.acknowledged("NET_SET_MTU", struct.pack("=Q", 1500)) == 0
    assert link.acknowledged("NET_SET_MTU", struct.pack("=Q", 68)) == 0
    assert link.acknowledged("NET_SET_MTU", struct.pack("=Q", 1501)) != 0
    assert link.acknowledged("NET_SET_MTU", struct.pack("=Q", 67)) != 0
    assert link.open()


def test_messages_in_pieces(lan):
    """A stream has no borders: a message may come in bytes, or several at once."""
    link = Link(lan.port("a"))
    message = struct.pack("=3I", 1, VERSION, 0)
    for byte in message[:-1]:
        link.raw(bytes([byte]))
    link.raw(message[-1:] + message * 3)
    for _ in range(4):
        assert link.receive()[0] == 1
    link.close()


def test_without_protocol_features_queues_are_on(lan):
    """A front end of old: no SET_VRING_ENABLE, and a header of 10 bytes."""
    a = lan.nic("a", features=0).start()
    b = lan.nic("b", features=MRG_RXBUF).start()
    a.send(a.frame(b.mac, b"from a" * 20))
    assert b.wait() == [(bytes(10) + b"\1\0", a.frame(b.mac, b"from a" * 20))]
    b.send(b.frame(a.mac, b"from b" * 20))
    assert a.wait() == [(bytes(10), b.frame(a.mac, b"from b" * 20))]


def test_queues_that_are_off(lan):
    """What a queue has to send while it is off waits; into one that is off nothing is received."""
    a, b = lan.pair()
    a.enable(a.tx(), False)
    a.settle()
    a.send(a.frame(b.mac, b"later" * 20))
    b.send(b.frame(a.mac, b"meanwhile" * 20))
    assert a.wait()
    assert not a.tx().taken()
    a.enable(a.tx())
    assert [frame for _, frame in b.wait()] == [a.frame(b.mac, b"later" * 20)]
    b.enable(b.rx(), False)
    a.settle(), b.settle()
    a.send(a.frame(b.mac, b"down" * 20))
    wait_until(lambda: lan.drops("b", "down") == 1)
    b.enable(b.rx())
    b.settle()
    a.send(a.frame(b.mac, b"there" * 20))
    assert [frame for _, frame in b.wait()] == [a.frame(b.mac, b"there" * 20)]


def test_stopping_and_starting_a_queue(lan):
    """GET_VRING_BASE says where the queue is; started again it goes on there."""
    a, b = lan.pair()
    for number in range(5):
        a.send(a.frame(b.mac, bytes([number]) * 50))
    b.wait(5)
    assert a.stop_queue(a.tx()) == 5
    assert b.stop_queue(b.rx()) == 5
    a.send(a.frame(b.mac, b"later" * 10))  # nobody looks
    b.start_queue(b.rx(), 5)
    b.settle()
    a.start_queue(a.tx(), 5)
    assert [frame for _, frame in b.wait()] == [a.frame(b.mac, b"later" * 10)]
    wait_until(lambda: a.tx().get(a.tx().used + 2) == 6)


def test_a_queue_goes_on_at_its_used_index(lan):
    """Whatever base the front end gives: chains are used in order, so the used ring knows best."""
    a, b = lan.pair()
    for number in range(3):
        a.send(a.frame(b.mac, bytes([number]) * 50))
    b.wait(3)
    a.stop_queue(a.tx())
    a.start_queue(a.tx(), 1)
    a.send(a.frame(b.mac, b"once" * 10))
    assert [frame for _, frame in b.wait()] == [a.frame(b.mac, b"once" * 10)]
    a.settle()
    assert b.receive() == []


def test_a_front_end_that_comes_again(lan):
    """Memory and queues stay the guest's: another connection goes on where the last one ended."""
    a, b = lan.pair()
    for number in range(3):
        a.send(a.frame(b.mac, bytes([number]) * 50))
    b.wait(3)
    for nic in (a, b):
        nic.link.close()
    wait_until(lambda: not lan.info("a").up and not lan.info("b").up)
    a.send(a.frame(b.mac, b"meanwhile" * 10))
    for nic in (b, a):
        nic.connect()
        nic.give_memory()
        for queue in nic.queues:
            nic.start_queue(queue, queue.get(queue.used + 2))
            nic.enable(queue)
        nic.settle()
    assert [frame for _, frame in b.wait()] == [a.frame(b.mac, b"meanwhile" * 10)]
    assert a.rx().called()  # for what was used and perhaps never told


def test_the_second_front_end_is_turned_away(lan):
    nic = lan.nic("a").start()
    other = Link(nic.path)
    assert other.gone()
    assert nic.link.open()
    nic.link.close()
    wait_until(lambda: not lan.info("a").up)
    lan.again(nic.path).start()


def test_regions_one_by_one(lan):
    """ADD_MEM_REG and REM_MEM_REG, with queues in one region and buffers in others; parts of one file."""
    a, b = lan.nic("a"), lan.nic("b").start()
    link = a.connect()
    part = a.BYTES // 4
    regions = [Region(part * i, part, a.uva + part * i, part * i, a.fd) for i in (2, 0, 3, 1)]
    for region in regions:
        assert link.acknowledged("ADD_MEM_REG", bytes(8) + region.pack(), [a.fd]) == 0
    for queue in a.queues:
        a.start_queue(queue)
        a.enable(queue)
    a.fill(32)
    a.take(part - a.BUFFERS - 32 * a.room - 40)  # the next buffer lies across two regions
    frame = a.frame(b.mac, b"border" * 30)
    a.send(frame)
    assert [got for _, got in b.wait()] == [frame]
    assert link.acknowledged("REM_MEM_REG", bytes(8) + regions[0].pack()) == 0
    assert link.acknowledged("REM_MEM_REG", bytes(8) + regions[2].pack(), [a.fd]) == 0  # as older ones do
    a.send(frame)
    assert [got for _, got in b.wait()] == [frame]


def test_a_queue_whose_memory_goes_and_comes(lan):
    """It rests meanwhile."""
    a, b = lan.pair()
    [whole] = a.regions()
    assert a.link.acknowledged("REM_MEM_REG", bytes(8) + whole.pack()) == 0
    assert not lan.info("a").up
    a.send(a.frame(b.mac, b"later" * 10))
    assert a.link.acknowledged("ADD_MEM_REG", bytes(8) + whole.pack(), [a.fd]) == 0
    assert [frame for _, frame in b.wait()] == [a.frame(b.mac, b"later" * 10)]


def test_another_table_while_queues_run(lan):
    """SET_MEM_TABLE again: the same guest addresses, now at other places of the front end and in two regions."""
    a, b = lan.pair()
    half = a.BYTES // 2
    for table in ([(0, half), (half, half)], [(0, a.BYTES)]):
        a.give_memory([Region(start, size, a.uva + start, start, a.fd) for start, size in table])
        a.settle()
        a.send(a.frame(b.mac, b"moved" * 10))
        assert [frame for _, frame in b.wait()] == [a.frame(b.mac, b"moved" * 10)]
        b.send(b.frame(a.mac, b"moved" * 10))
        assert [frame for _, frame in a.wait()] == [b.frame(a.mac, b"moved" * 10)]


def test_resetting_the_device(lan):
    """All queues are off and forgotten, the memory stays."""
    a, b = lan.pair()
    assert a.link.acknowledged("RESET_DEVICE") == 0
    assert not lan.info("a").up
    a.link.send("SET_FEATURES", struct.pack("=Q", a.features))
    for queue in a.queues:
        a.start_queue(queue)
        a.enable(queue)
    a.settle()
    a.send(a.frame(b.mac, b"again" * 10))
    assert [frame for _, frame in b.wait()] == [a.frame(b.mac, b"again" * 10)]


def test_resetting_the_owner_disables(lan):
    a, b = lan.pair()
    a.link.send("RESET_OWNER")
    a.settle()
    assert not lan.info("a").up
    for queue in a.queues:
        a.enable(queue)
    a.settle()
    a.send(a.frame(b.mac, b"again" * 10))
    assert [frame for _, frame in b.wait()] == [a.frame(b.mac, b"again" * 10)]


def test_several_pairs(lan):
    """Frames of one flow stay in one queue and in order; several flows use several queues."""
    a = lan.nic("a", features=PLAIN | MRG_RXBUF | MQ, protocol=P_ALL | P_MQ, pairs=3).start()
    b = lan.nic("b", features=PLAIN | MRG_RXBUF | MQ, protocol=P_ALL | P_MQ, pairs=2).start()
    used = set()
    for flow in range(16):
        ip = b"\x45" + bytes(8) + b"\x11" + bytes(2) + b"\x0a\0\0\1\x0a\0\0\2"
        datagram = ip + struct.pack(">HHHH", 1000 + flow, 53, 20, 0)
        for number in range(4):
            a.send(a.frame(b.mac, datagram + bytes([number]) * 12, 0x0800), pair=flow % 3)
        found: dict[int, list[bytes]] = {0: [], 1: []}

        def all_there(found=found):
            for pair in found:
                found[pair] += [frame[-1:] for _, frame in b.receive(pair)]
            return sum(map(len, found.values())) == 4

        wait_until(all_there)
        [pair] = [pair for pair, frames in found.items() if frames]
        assert found[pair] == [b"\0", b"\1", b"\2", b"\3"]
        used.add(pair)
    assert used == {0, 1}


def test_queues_without_kicks_are_looked_at(lan):
    """A front end that gives no descriptor to be kicked by: the port looks by itself, also when the switch sleeps."""
    a = lan.nic("a").start(kick=False)
    b = lan.nic("b").start()
    for number in range(3):
        wait_until(lambda: a.tx().wants_kick)  # it sleeps
        a.tx()  # nobody kicks
        queue = a.tx()
        at = a.take(100)
        a.write(at, bytes(12) + a.frame(b.mac, bytes([number]) * 60))
        queue.post([(at, 12 + 14 + 60)], write=False)
        assert len(b.wait()) == 1


# --- the socket ---


def test_the_socket_is_its_owners(lan):
    path = lan.port("a")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    lan.switch.remove("a")
    assert not os.path.exists(path)


def test_a_socket_that_was_left_is_replaced(lan):
    path = str(lan.folder / "left")
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()
    lan.switch.add_vhost("left", path)
    lan.again(path).start()


def test_a_socket_in_use_is_not(lan):
    path = lan.port("a")
    with pytest.raises(Exception, match=r"in use"):
        lan.switch.add_vhost("b", path)
    lan.again(path).start()


def test_a_file_is_not_replaced(lan):
    path = lan.folder / "file"
    path.write_text("kept")
    with pytest.raises(Exception, match=r"in use"):
        lan.switch.add_vhost("a", str(path))
    assert path.read_text() == "kept"


def test_a_port_that_is_removed_leaves_its_front_end(lan):
    """In full traffic, too; the name and the path can be used again."""
    a, b = lan.pair()
    for _ in range(64):
        a.send(a.frame(b.mac, bytes(500)))
    lan.switch.remove("b")
    assert b.link.gone()
    a.send(a.frame(b.mac, bytes(500)))
    assert a.link.open()
    lan.port("b")
    lan.again(b.path, mac=b.mac).start()
