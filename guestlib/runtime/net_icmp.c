/* net_icmp.c: answers echo requests (RFC 792); nothing else of ICMP is spoken here. */
#include "net_ip.h"

/* Checked: lengths, and the checksum of the copy that is sent back. */
void net_icmp_input(struct net_port *port, const struct net_packet *packet) {
    struct wire_icmp header;
    if (packet->size < sizeof header) {
        port->counters.runt++;
        return;
    }
    memcpy(&header, packet->payload, sizeof header);
    if (header.type != ICMP_ECHO || header.code || packet->broadcast) { /* Nobody gets many answers to one request. */
        port->counters.unclaimed++;
        return;
    }
    uint8_t *frame = net_answer(port, (uint32_t)NET_HEADERS + packet->size);
    if (!frame) {
        port->counters.unanswered++;
        return;
    }
    uint8_t *answer = frame + NET_HEADERS;
    memcpy(answer, &header, sizeof header);
    memcpy(answer + sizeof header, packet->payload + sizeof header, packet->size - sizeof header);
    if (!net_ip_unchecked(packet->offload, packet->start, offsetof(struct wire_icmp, checksum)) &&
        wire_fold(wire_sum(answer, packet->size, 0)) != 0xffff) {
        port->counters.checksum++; /* What was reserved is not committed. */
        return;
    }
    header.type = ICMP_ECHO_REPLY;
    header.checksum = 0;
    memcpy(answer, &header, sizeof header);
    header.checksum = (uint16_t)~wire_fold(wire_sum(answer, packet->size, 0));
    memcpy(answer, &header, sizeof header);
    net_ip_headers(port, frame, packet->from_mac, packet->source, IPV4_ICMP, packet->size);
    net_commit(port, NET_HEADERS + packet->size);
}
