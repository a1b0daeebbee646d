"""Channels between unikernels: every kind, every end, asleep and awake, with peers that stop, die or lie."""

from __future__ import annotations

import mmap
import struct

import pytest
from party import Member, Party, end  # type: ignore[import-not-found]

SEND = """
int main(int argc, char **argv) {
    struct channel c;
    static unsigned char message[16384];
    uint64_t count = strtoul(argv[1], NULL, 10), sum = 0;
    channel_must_open(&c, "c");
    channel_spin(&c, argc > 2 ? strtoul(argv[2], NULL, 10) : CHANNEL_SPIN_ALWAYS);
    for (uint64_t i = 0; i < count; i++) {
        size_t size = 8 + i * 37 % 4000;
        memset(message, (int)i, size);
        memcpy(message, &i, 8);
        sum += size;
        channel_must(&c, channel_send(&c, message, size, GUEST_NO_LIMIT));
    }
    channel_close(&c);
    report("bytes", sum);
    return 0;
}
"""
RECEIVE = """
int main(int argc, char **argv) {
    struct channel c;
    static unsigned char message[16384];
    uint64_t next = 0, sum = 0;
    int64_t size;
    channel_must_open(&c, "c");
    channel_spin(&c, argc > 1 ? strtoul(argv[1], NULL, 10) : CHANNEL_SPIN_ALWAYS);
    while ((size = channel_receive(&c, message, sizeof message, GUEST_NO_LIMIT)) >= 0) {
        uint64_t number;
        memcpy(&number, message, 8);
        if (number != next || (size_t)size != 8 + number * 37 % 4000)
            guest_fail("message %lu of %ld bytes where %lu was due", number, (long)size, next);
        for (int64_t i = 8; i < size; i++)
            if (message[i] != (unsigned char)number)
                guest_fail("byte %ld of message %lu", (long)i, number);
        next++;
        sum += (uint64_t)size;
    }
    report("end", channel_error(&c, size));
    report("count", next);
    report("bytes", sum);
    return 0;
}
"""


@pytest.mark.parametrize("spin", [[], ["0"], ["5000"]], ids=["spinning", "sleeping", "both"])
def test_every_message_arrives_once_in_order_and_whole(party: Party, spin: list[str]) -> None:
    sender = Member("sender", SEND, [end("c", "send")], ["3000", *spin])
    receiver = Member("receiver", RECEIVE, [end("c", "receive")], spin)
    party.run(sender, receiver)
    assert sender.result["code"] == 0, party.log(sender)
    assert receiver.result["code"] == 0, party.log(receiver)
    assert receiver.reports == {"end": "its other end was closed", "count": 3000, "bytes": sender.reports["bytes"]}
    if spin == ["0"]:
        assert receiver.counters["waits"] + sender.counters["waits"] > 0


def test_zero_copy_ends_meet(party: Party) -> None:
    sender = Member(
        "sender",
        """
        int main(void) {
            struct channel c;
            void *room;
            channel_must_open(&c, "c");
            for (uint64_t i = 0; i < 5000; i++) {
                channel_must(&c, channel_reserve(&c, 8192, &room, GUEST_NO_LIMIT));
                memcpy(room, &i, 8);
                channel_commit(&c, 8 + i % 1000);
            }
            channel_close(&c);
            return 0;
        }
        """,
        [end("c", "send")],
    )
    receiver = Member(
        "receiver",
        """
        int main(void) {
            struct channel c;
            const void *message;
            uint64_t next = 0, number;
            int64_t size;
            channel_must_open(&c, "c");
            for (; (size = channel_peek(&c, &message, GUEST_NO_LIMIT)) >= 0; next++) {
                memcpy(&number, message, 8);
                if (number != next || (uint64_t)size != 8 + next % 1000)
                    return 1;
                channel_release(&c);
            }
            report("count", next);
            return size == CHANNEL_CLOSED ? 0 : 2;
        }
        """,
        [end("c", "receive")],
    )
    party.run(sender, receiver)
    assert (sender.result["code"], receiver.result["code"]) == (0, 0)
    assert receiver.reports == {"count": 5000}


def test_many_senders_one_receiver(party: Party) -> None:
    senders = [
        Member(
            f"sender{lane}",
            """
            int main(int argc, char **argv) {
                struct channel c;
                uint64_t message[2] = {strtoul(argv[argc - 1], NULL, 10)};
                channel_must_open(&c, "c");
                for (; message[1] < 4000; message[1]++)
                    channel_must(&c, channel_send(&c, message, sizeof message, GUEST_NO_LIMIT));
                channel_close(&c);
                return 0;
            }
            """,
            [end("c", "send", kind="mpsc", lanes=3, lane=lane, size=4096, max_message=64)],
            [str(lane)],
        )
        for lane in range(3)
    ]
    receiver = Member(
        "receiver",
        """
        int main(void) {
            struct channel c;
            uint64_t message[2], next[3] = {0};
            int64_t size;
            channel_must_open(&c, "c");
            while ((size = channel_receive(&c, message, sizeof message, GUEST_NO_LIMIT)) == sizeof message) {
                if (message[0] > 2 || message[1] != next[message[0]]++)
                    guest_fail("out of order: %lu %lu", message[0], message[1]);
            }
            report("end", channel_error(&c, size));
            report("count", next[0] + next[1] + next[2]);
            return 0;
        }
        """,
        [end("c", "receive", kind="mpsc", lanes=3, size=4096, max_message=64)],
    )
    party.run(*senders, receiver)
    assert receiver.reports == {"end": "its other end was closed", "count": 12000}, party.log(receiver)


def test_broadcast_readers_get_all_or_learn_what_they_lost(party: Party) -> None:
    writer = Member(
        "writer",
        """
        int main(void) {
            struct channel start, c;
            channel_must_open(&c, "c");
            channel_must_open(&start, "start");
            channel_must(&start, channel_join(&start, GUEST_NO_LIMIT));
            for (uint64_t i = 0; i < 50000; i++)
                channel_must(&c, channel_send(&c, &i, 8 + i % 100, GUEST_NO_LIMIT));
            channel_close(&c);
            return 0;
        }
        """.replace("&i, 8 + i % 100", "((uint64_t[32]){i}), 8 + i % 100"),
        [
            end("c", "send", kind="broadcast", size=8192, max_message=256),
            end("start", "join", kind="barrier", offset=1 << 20, bell=2, lanes=3),
        ],
    )
    readers = [
        Member(
            f"reader{number}",
            """
            int main(void) {
                struct channel start, c;
                uint64_t message[32], last = 0, count = 0;
                int64_t size;
                channel_must_open(&c, "c");
                channel_must_open(&start, "start");
                channel_must(&start, channel_join(&start, GUEST_NO_LIMIT));
                while ((size = channel_receive(&c, message, sizeof message, GUEST_NO_LIMIT)) >= 0) {
                    if ((uint64_t)size != 8 + message[0] % 100 || (count && message[0] <= last))
                        guest_fail("%lu after %lu, %ld bytes", message[0], last, (long)size);
                    last = message[0];
                    count++;
                }
                report("sum", count + channel_lost(&c));
                report("last", last);
                report("end", channel_error(&c, size));
                return 0;
            }
            """,
            [
                end("c", "receive", kind="broadcast", size=8192, max_message=256),
                end("start", "join", kind="barrier", offset=1 << 20, bell=2, lanes=3, lane=number),
            ],
        )
        for number in (1, 2)
    ]
    party.run(writer, *readers)
    for reader in readers:
        assert reader.reports == {"sum": 50000, "last": 49999, "end": "its other end was closed"}, party.log(reader)


@pytest.mark.parametrize("spin", ["0", "20000"])
def test_barrier_holds_everyone_every_time(party: Party, spin: str) -> None:
    members = [
        Member(
            f"party{number}",
            """
            int main(int argc, char **argv) {
                struct channel b;
                volatile uint32_t *counter = (volatile uint32_t *)(guest_region("shared")->address + (2 << 20));
                channel_must_open(&b, "b");
                channel_spin(&b, strtoul(argv[argc - 1], NULL, 10));
                for (uint32_t i = 1; i <= 300; i++) {
                    __atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST);
                    channel_must(&b, channel_join(&b, GUEST_NO_LIMIT));
                    if (*counter < 3 * i)
                        guest_fail("through barrier %u with %u arrivals", i, *counter);
                    channel_must(&b, channel_join(&b, GUEST_NO_LIMIT));
                }
                return 0;
            }
            """,
            [end("b", "join", kind="barrier", lanes=3, lane=number)],
            [spin],
        )
        for number in range(3)
    ]
    party.run(*members)
    assert [m.result["code"] for m in members] == [0, 0, 0], [party.log(m) for m in members]


def test_select_wakes_for_any_channel(party: Party) -> None:
    chooser = Member(
        "chooser",
        """
        int main(void) {
            struct channel a, b, *both[2] = {&a, &b};
            channel_must_open(&a, "a");
            channel_must_open(&b, "b");
            report("nothing", channel_select(both, 2, 5000000));
            report("first", channel_select(both, 2, GUEST_NO_LIMIT));
            char byte;
            channel_must(&b, channel_receive(&b, &byte, 1, 0));
            report("then", channel_select(both, 2, GUEST_NO_LIMIT));
            return 0;
        }
        """,
        [end("a", "receive"), end("b", "receive", offset=1 << 20, bell=2)],
    )
    sender = Member(
        "sender",
        """
        int main(void) {
            struct channel a, b;
            channel_must_open(&a, "a");
            channel_must_open(&b, "b");
            guest_wait(0, 0, 100000000);
            channel_must(&b, channel_send(&b, "x", 1, GUEST_NO_LIMIT));
            guest_wait(0, 0, 50000000);
            channel_must(&a, channel_send(&a, "x", 1, GUEST_NO_LIMIT));
            return 0;
        }
        """,
        [end("a", "send"), end("b", "send", offset=1 << 20, bell=2)],
    )
    party.run(chooser, sender)
    assert chooser.reports == {"nothing": -20, "first": 1, "then": 0}


def test_limits_roles_and_names_are_answered(party: Party) -> None:
    alone = Member(
        "alone",
        """
        int main(void) {
            struct channel out, in, none;
            static char message[20000];
            channel_must_open(&out, "out");
            channel_must_open(&in, "in");
            report("none", channel_open(&none, "none"));
            report("empty", channel_receive(&in, message, 10, 1000000));
            report("wrong role", channel_send(&in, message, 1, 0));
            report("long", channel_send(&out, message, 20000, 0));
            int result = 0, sent = 0;
            while ((result = channel_send(&out, message, 1000, 1000000)) == 0)
                sent++;
            report("full", result);
            report("sent", sent);
            return 0;
        }
        """,
        [end("out", "send"), end("in", "receive", offset=1 << 20, bell=2)],
    )
    party.run(alone)
    assert alone.reports == {"none": -21, "empty": -20, "wrong role": -22, "long": -5, "full": -20, "sent": 63}


def test_a_dead_peer_is_noticed_by_a_sleeper(party: Party) -> None:
    view = mmap.mmap(party.region, 4 << 20)
    struct.pack_into("<I", view, 4096 + 4 * 64, 3)  # the producer's state: gone
    receiver = Member("receiver", RECEIVE, [end("c", "receive")], ["0"])
    party.run(receiver)
    assert receiver.reports["end"] == "its other end died"


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (4096 + 512, (0x7FFFFFFF << 32) | 1, "a peer spoiled its field length"),
        (4096 + 512, (20000 << 32) | 1, "a peer spoiled its field length"),
        (4096 + 512, (0xFFFFFFFF << 32) | 1, "a peer spoiled its field length"),
    ],
)
def test_a_hostile_header_is_named(party: Party, offset: int, value: int, text: str) -> None:
    view = mmap.mmap(party.region, 4 << 20)
    struct.pack_into("<Q", view, offset, value)
    receiver = Member(
        "receiver",
        """
        int main(void) {
            struct channel c;
            char byte[100];
            channel_must_open(&c, "c");
            channel_must(&c, channel_receive(&c, byte, sizeof byte, GUEST_NO_LIMIT));
            return 0;
        }
        """,
        [end("c", "receive")],
    )
    party.run(receiver)
    assert receiver.result["code"] == 1
    assert party.log(receiver) == f"channel c: {text}\n"


def test_a_hostile_head_is_named(party: Party) -> None:
    view = mmap.mmap(party.region, 4 << 20)
    struct.pack_into("<Q", view, 4096, 1 << 60)
    sender = Member("sender", SEND, [end("c", "send")], ["10"])
    party.run(sender)
    assert party.log(sender) == "channel c: a peer spoiled its field head\n"
