/* net_ip.c: IPv4 (RFC 791) on a port, without fragments and options. */
#include "net_ip.h"

static int receive(struct net_port *port, const struct net_offload *offload, const uint8_t *frame, uint32_t size);

int net_ip_open(struct net_port *port) {
    if (port->ip)
        return 0;
    const struct guest_network *info = port->info;
    if (!info->address)
        return NET_NO_ADDRESS;
    struct net_ip *ip = guest_alloc(sizeof *ip, 64);
    if (!ip)
        return NET_NO_MEMORY;
    ip->address = info->address;
    ip->mask = info->prefix ? ~(uint32_t)0 << (32 - info->prefix) : 0;
    ip->gateway = info->gateway;
    ip->second = guest_ns_to_ticks(1000000000);
    port->ip = ip;
    port->input = receive;
    net_arp_announce(port);
    return 0;
}

int net_ip_is_host(const struct net_ip *ip, uint32_t address) {
    if (!address || address == ip->address || address >> 24 >= 224 || address >> 24 == 127 || !(address >> 24))
        return 0;
    if ((address & ip->mask) != (ip->address & ip->mask))
        return 1;
    return address & ~ip->mask && ~(address | ip->mask);
}

static int is_broadcast(const struct net_ip *ip, uint32_t address) {
    return address == NET_BROADCAST || ((address & ip->mask) == (ip->address & ip->mask) && !~(address | ip->mask));
}

/* ---- receiving --------------------------------------------------------------------------------------------------------- */

int net_ip_unchecked(const struct net_offload *offload, uint32_t start, uint32_t offset) {
    if (offload->flags & NET_NEEDS_CHECKSUM)
        return offload->checksum_start == start && offload->checksum_offset == offset;
    return offload->flags & NET_CHECKED;
}

/* Checked: all lengths against the frame, the header's checksum, both addresses. NULL, or the counter of what is wrong. */
static uint64_t *parse(struct net_port *port, const uint8_t *frame, uint32_t size, const struct wire_ethernet *ethernet,
                       struct net_packet *packet) {
    const struct net_offload *offload = packet->offload;
    struct net_counters *counters = &port->counters;
    uint8_t bytes[60];
    struct wire_ipv4 header;
    uint32_t left = size - (uint32_t)sizeof *ethernet;
    if (left < sizeof header)
        return &counters->runt;
    memcpy(bytes, frame + sizeof *ethernet, left < sizeof bytes ? left : sizeof bytes);
    memcpy(&header, bytes, sizeof header);
    uint32_t words = header.version_words & 15, whole = wire16(header.size);
    if (header.version_words >> 4 != 4 || words < 5 || words * 4 > whole || whole > left ||
        (whole > port->info->mtu && !offload->segmentation))
        return &counters->malformed;
    if (wire_fold(wire_sum(bytes, words * 4, 0)) != 0xffff)
        return &counters->checksum;
    packet->source = wire32(header.source);
    packet->destination = wire32(header.destination);
    packet->broadcast = (uint8_t)is_broadcast(port->ip, packet->destination);
    if (packet->destination != port->ip->address && !packet->broadcast)
        return &counters->foreign;
    if (!net_ip_is_host(port->ip, packet->source) || net_is_group(ethernet->source) ||
        (net_is_group(ethernet->destination) && !packet->broadcast))
        return &counters->malformed;
    if (header.fragment & wire16(IPV4_FRAGMENT))
        return &counters->fragment;
    packet->protocol = header.protocol;
    packet->start = (uint32_t)sizeof *ethernet + words * 4;
    packet->size = whole - words * 4;
    packet->payload = frame + packet->start;
    memcpy(packet->from_mac, ethernet->source, 6);
    return NULL;
}

/* Several datagrams in one frame, as segmentation offload of UDP makes it: the checksum is undone (5.1.6.2). */
static int is_uso(const struct net_packet *packet) {
    return packet->protocol == IPV4_UDP && packet->offload->segmentation == NET_SEGMENTS_UDP &&
           packet->offload->flags & NET_NEEDS_CHECKSUM &&
           net_ip_unchecked(packet->offload, packet->start, offsetof(struct wire_udp, checksum));
}

static void receive_ipv4(struct net_port *port, const struct net_offload *offload, const uint8_t *frame, uint32_t size,
                         const struct wire_ethernet *ethernet) {
    struct net_packet packet = {.offload = offload};
    uint64_t *counter = parse(port, frame, size, ethernet, &packet);
    if (!counter && offload->segmentation && !is_uso(&packet))
        counter = &port->counters.segments;
    if (counter)
        ++*counter;
    else if (packet.protocol == IPV4_UDP && port->ip->udp)
        port->ip->udp(port, &packet);
    else if (packet.protocol == IPV4_UDP)
        port->counters.no_socket++;
    else if (packet.protocol == IPV4_ICMP)
        net_icmp_input(port, &packet);
    else
        port->counters.unclaimed++;
}

/* Checked: that the Ethernet header is there (by net_pull); it is read once. */
static int receive(struct net_port *port, const struct net_offload *offload, const uint8_t *frame, uint32_t size) {
    struct wire_ethernet ethernet;
    memcpy(&ethernet, frame, sizeof ethernet);
    if (ethernet.type != wire16(ETHERNET_IPV4) && ethernet.type != wire16(ETHERNET_ARP))
        return 0;
    if (!net_is_group(ethernet.destination) && !net_same_mac(ethernet.destination, port->info->mac))
        port->counters.foreign++; /* Flooded by a switch that doesn't know where it belongs. */
    else if (ethernet.type == wire16(ETHERNET_ARP))
        net_arp_input(port, frame, size);
    else
        receive_ipv4(port, offload, frame, size, &ethernet);
    return 1;
}

int net_ip_step(struct net_port *port, struct net_limit *limit) {
    const uint8_t *frame;
    struct net_offload offload;
    int64_t size = net_pull(port, &frame, &offload, limit);
    if (size < 0)
        return (int)size;
    if (!port->input(port, &offload, frame, (uint32_t)size))
        port->counters.unclaimed++;
    net_release(port);
    return 0;
}

int net_serve(struct net_port *port, uint64_t limit_ns) {
    struct net_limit limit = {.ns = limit_ns};
    int result = net_ip_open(port);
    while (!result) {
        result = net_ip_step(port, &limit);
        if (!result && !net_goes_on(&limit))
            result = NET_TIMEOUT;
    }
    return result;
}

/* ---- sending ----------------------------------------------------------------------------------------------------------- */

void net_ip_headers(const struct net_port *port, uint8_t *at, const uint8_t mac[6], uint32_t destination, uint8_t protocol,
                    uint32_t size) {
    struct {
        struct wire_ethernet ethernet;
        struct wire_ipv4 ipv4;
    } __attribute__((packed)) headers = {
        .ethernet = {.type = wire16(ETHERNET_IPV4)},
        /* No identification: what is never in fragments needs none (RFC 6864). */
        .ipv4 = {.version_words = 0x45, .size = wire16((uint16_t)(size + sizeof(struct wire_ipv4))),
                 .fragment = wire16(IPV4_DONT_FRAGMENT), .ttl = IPV4_TTL, .protocol = protocol,
                 .source = wire32(port->ip->address), .destination = wire32(destination)},
    };
    memcpy(headers.ethernet.destination, mac, 6);
    memcpy(headers.ethernet.source, port->info->mac, 6);
    headers.ipv4.checksum = (uint16_t)~wire_fold(wire_sum(&headers.ipv4, sizeof headers.ipv4, 0));
    memcpy(at, &headers, sizeof headers);
}

int net_ip_route(struct net_port *port, uint32_t destination, uint8_t mac[6], struct net_limit *limit) {
    const struct net_ip *ip = port->ip;
    if (is_broadcast(ip, destination)) {
        memset(mac, 255, 6);
        return 0;
    }
    if (destination >> 28 == 14) { /* RFC 1112, 6.4 */
        const uint8_t group[6] = {1, 0, 0x5e, destination >> 16 & 127, destination >> 8 & 255, destination & 255};
        memcpy(mac, group, 6);
        return 0;
    }
    if (!net_ip_is_host(ip, destination))
        return NET_NO_ROUTE;
    if ((destination & ip->mask) != (ip->address & ip->mask)) {
        if (!ip->gateway)
            return NET_NO_ROUTE;
        destination = ip->gateway;
    }
    return net_arp_find(port, destination, mac, limit);
}
