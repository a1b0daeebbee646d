/* answerer.c [NETWORK...]: answers each number that comes by UDP, on its networks, with its complement.
   Where it has the region "runs", the first run of all spoils the rings of network lan, and fails. */
#include "net.h"

#define ASKED 7
#define MOST 4

static void spoil(void) {
    const struct guest_region *runs = guest_region("runs"), *rings = guest_region("net.lan");
    if (!runs || (*(uint32_t *)runs->address)++)
        return;
    /* One frame as it should be, then one of an impossible length; and when that has been seen, nothing that makes sense. */
    net_must("sending", net_send(net_must_open("lan"), "\xff\xff\xff\xff\xff\xff\2\0\0\0\0\1\x88\xb5", 14, NULL, 0));
    struct ring_shared *out = (struct ring_shared *)(rings->address + SHM_PAGE);
    ((uint64_t *)(out + 1))[SHM_LINE / sizeof(uint64_t)] = 0x7fffffffull << 32 | ring_sequence(1);
    guest_wait(NULL, 0, 500000000);
    memset(out, 0xa5, rings->size - SHM_PAGE);
    guest_exit(3);
}

int main(int argc, char **argv) {
    spoil();
    struct udp_socket *sockets[MOST];
    size_t count = 0;
    for (int i = 1; i < argc && count < MOST; i++)
        sockets[count++] = udp_must_open(net_must_open(argv[i]), ASKED);
    if (!count)
        sockets[count++] = udp_must_open(net_must_open(NULL), ASKED);
    report("ready", 1);
    for (;;) {
        uint64_t number;
        struct udp_peer from;
        int which = udp_select(sockets, count, GUEST_NO_LIMIT);
        net_must("waiting", which);
        if (udp_receive_from(sockets[which], &number, sizeof number, &from, 0) != sizeof number)
            continue;
        number = ~number;
        udp_send_to(sockets[which], from.address, from.port, &number, sizeof number, 50000000);
    }
}
