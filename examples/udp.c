/*
 * udp.c: two guests of a network bounce datagrams; `ping NAME` finds the other one by its name and measures, `pong` answers.
 *
 * Arguments: ping NAME [rounds] [size] [spin|sleep], or pong [spin|sleep]; without either, they spin briefly, then sleep. To
 * spin, the two and their switch need a processor each. Each answer is compared with what was sent. UDP may lose datagrams:
 * one that is not answered within a while is counted, and the next one sent.
 * Reports of ping: rtt_ns_p50 and other percentiles, over `rounds` round trips after a tenth as many to warm up; `lost`.
 */
#include "net.h"
#include "percentiles.h"

#define PORT 7 /* echo */
#define LAST (~(uint64_t)0)

static const uint64_t ANSWER_NS = 100000000, START_NS = 60000000000, LINGER_NS = 300000000;
static const size_t PATIENCE = 600; /* datagrams without an answer */
static const int LAST_TRIES = 5;

static struct udp_socket *socket;
static uint32_t other;
static uint8_t message[65536], answer[65536];
static size_t size = 64;
static uint64_t lost;

/* Sends the message and waits for its answer: 1, or 0 if none came. Late answers to earlier ones are passed over. */
static int bounce(uint64_t number) {
    memcpy(message, &number, sizeof number);
    int sent = udp_send_to(socket, other, PORT, message, size, ANSWER_NS);
    if (sent == NET_UNREACHABLE)
        return 0;
    net_must("send", sent);
    for (;;) {
        struct udp_peer from;
        int64_t got = udp_receive_from(socket, answer, sizeof answer, &from, ANSWER_NS);
        if (got == NET_TIMEOUT)
            return 0;
        net_must("receive", got);
        if (from.address != other || from.port != PORT)
            continue;
        uint64_t answered;
        memcpy(&answered, answer, sizeof answered);
        if ((size_t)got >= sizeof answered && answered < number)
            continue;
        if ((size_t)got != size || memcmp(answer, message, size) != 0)
            guest_fail("what came back is not datagram %lu", number);
        return 1;
    }
}

static int ping(const char *name, size_t rounds) {
    uint32_t *ticks = guest_alloc(rounds * sizeof *ticks, 64);
    if (!ticks)
        guest_fail("no memory for %zu samples; give this guest more memory", rounds);
    other = net_resolve(name);
    if (!other)
        guest_fail("nobody on the network is called %s", name);
    for (size_t i = 0; i < size; i++)
        message[i] = (uint8_t)guest_random();
    uint64_t number = 0, start = guest_now_ns();
    while (!bounce(number++)) /* The other one may not run yet. */
        if (guest_now_ns() - start > START_NS)
            guest_fail("%s does not answer", name);
    for (size_t i = 0; i < rounds / 10; i++)
        lost += !bounce(number++);
    start = guest_now_ns();
    size_t count = 0, in_a_row = 0;
    while (count < rounds) {
        uint64_t before = guest_ticks();
        if (!bounce(number++)) {
            lost++;
            if (++in_a_row == PATIENCE)
                guest_fail("%s does not answer any more", name);
            continue;
        }
        in_a_row = 0;
        uint64_t took = guest_ticks() - before;
        ticks[count++] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
    }
    uint64_t all = guest_now_ns() - start;
    for (int i = 0; i < LAST_TRIES && !bounce(LAST); i++) {}
    sort(ticks, rounds);
    char text[16];
    report("peer", (const char *)net_address_text(other, text));
    report("rounds", rounds);
    report("size", size);
    report("lost", lost);
    report("rtt_ns_mean", (double)all / (double)rounds);
    report_percentile("rtt_ns_p50", ticks, rounds, 500);
    report_percentile("rtt_ns_p99", ticks, rounds, 990);
    report_percentile("rtt_ns_max", ticks, rounds, 1000);
    guest_print("%zu round trips of %zu bytes to %s, median %lu ns\n", rounds, size, name,
                guest_ticks_to_ns(ticks[rounds / 2]));
    return 0;
}

static int pong(void) {
    uint64_t answered = 0, number = 0;
    struct udp_peer from;
    for (;;) {
        /* Whoever did not hear the last answer asks again. */
        int64_t got = udp_receive_from(socket, answer, sizeof answer, &from, number == LAST ? LINGER_NS : GUEST_NO_LIMIT);
        if (got == NET_TIMEOUT)
            break;
        net_must("receive", got);
        if ((size_t)got < sizeof number)
            continue;
        memcpy(&number, answer, sizeof number);
        answered += udp_send_to(socket, from.address, from.port, answer, (size_t)got, ANSWER_NS) == 0;
    }
    report("answered", answered);
    return 0;
}

int main(int argc, char **argv) {
    int pinging = argc > 2 && strcmp(argv[1], "ping") == 0;
    if (!pinging && (argc < 2 || strcmp(argv[1], "pong") != 0))
        guest_fail("usage: %s ping NAME [rounds] [size] [spin|sleep], or pong [spin|sleep]", argv[0]);
    size_t rounds = pinging && argc > 3 ? strtoul(argv[3], NULL, 10) : 100000;
    if (pinging && argc > 4)
        size = strtoul(argv[4], NULL, 10);
    struct net_port *port = net_must_open(NULL /* the only one */);
    socket = udp_must_open(port, pinging ? 0 : PORT);
    if (!rounds || size < sizeof(uint64_t) || size > udp_max_size(socket))
        guest_fail("rounds must be positive and size %zu to %u bytes", sizeof(uint64_t), udp_max_size(socket));
    if (strcmp(argv[argc - 1], "spin") == 0 || strcmp(argv[argc - 1], "sleep") == 0)
        net_spin(port, argv[argc - 1][1] == 'p' ? CHANNEL_SPIN_ALWAYS : 0);
    return pinging ? ping(argv[2], rounds) : pong();
}
