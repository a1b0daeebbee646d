/* answerer.c: answers each number that comes by UDP, on any of its networks, with its complement. */
#include "net.h"

#define ASKED 7
#define MOST 4

int main(int argc, char **argv) {
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
