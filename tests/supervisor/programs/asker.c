/* asker.c NAME [COUNT]: asks NAME by UDP, again and again, and reports what was answered and the longest time without. */
#include "net.h"

#define ASKED 7
#define PATIENCE_NS 50000000
#define EVERY 20

/* Waits for the answer to `number`; late ones to earlier questions are passed over. */
static int answered(struct udp_socket *socket, uint32_t peer, uint64_t number) {
    uint64_t answer;
    struct udp_peer from;
    while (udp_receive_from(socket, &answer, sizeof answer, &from, PATIENCE_NS) == sizeof answer)
        if (answer == ~number && from.address == peer)
            return 1;
    return 0;
}

int main(int argc, char **argv) {
    struct udp_socket *socket = udp_must_open(net_must_open(NULL), 0);
    uint32_t peer = net_resolve(argv[1]);
    uint64_t count = argc > 2 ? strtoul(argv[2], NULL, 10) : ~0ull, answers = 0, lost = 0, gap = 0;
    if (!peer)
        guest_fail("nobody is called %s here", argv[1]);
    char text[16];
    report("peer", (const char *)net_address_text(peer, text));
    uint64_t last = guest_now_ns();
    for (uint64_t number = 0; answers < count; number++) {
        /* A network that is away for a moment, or a peer: asked again. */
        int sent = udp_send_to(socket, peer, ASKED, &number, sizeof number, PATIENCE_NS);
        if (!sent && answered(socket, peer, number)) {
            uint64_t now = guest_now_ns();
            if (now - last > gap)
                gap = now - last;
            last = now;
            answers++;
        } else {
            lost++;
        }
        if (number % EVERY == 0 || answers == count) {
            report("answers", (int64_t)answers);
            report("lost", (int64_t)lost);
            report("gap_ns", (int64_t)gap);
        }
        /* No processor is this test's alone. */
        guest_wait(NULL, 0, 1000000);
    }
    return 0;
}
