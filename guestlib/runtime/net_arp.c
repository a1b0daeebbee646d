/* net_arp.c: which station has an address (RFC 826). */
#include "net_ip.h"

enum { REFRESH = 30, EXPIRE = 60 }; /* seconds after which a neighbour is asked again, and is no longer believed in */

static const uint64_t FIRST_WAIT_NS = 50000000; /* for an answer; doubled at each try: 3.15 s in all */
static const int TRIES = 6;
static const uint8_t EVERYBODY[6] = {255, 255, 255, 255, 255, 255}, NOBODY[6];

struct arp_frame {
    struct wire_ethernet ethernet;
    struct wire_arp arp;
} __attribute__((packed));

static void send(struct net_port *port, uint16_t operation, const uint8_t to[6], const uint8_t target_mac[6], uint32_t target) {
    uint8_t *frame = net_answer(port, sizeof(struct arp_frame));
    if (!frame) {
        port->counters.unanswered++;
        return;
    }
    struct arp_frame sent = {
        .ethernet = {.type = wire16(ETHERNET_ARP)},
        .arp = {.hardware = wire16(ARP_ETHERNET), .protocol = wire16(ETHERNET_IPV4), .hardware_size = 6, .protocol_size = 4,
                .operation = wire16(operation), .sender = wire32(port->ip->address), .target = wire32(target)},
    };
    memcpy(sent.ethernet.destination, to, 6);
    memcpy(sent.ethernet.source, port->info->mac, 6);
    memcpy(sent.arp.sender_mac, port->info->mac, 6);
    memcpy(sent.arp.target_mac, target_mac, 6);
    memcpy(frame, &sent, sizeof sent);
    net_commit(port, sizeof sent);
}

/* So that the switch and those who know this address from before learn where it is (RFC 5227, 2.3). */
void net_arp_announce(struct net_port *port) {
    send(port, ARP_REQUEST, EVERYBODY, NOBODY, port->ip->address);
}

/* ---- hearing ----------------------------------------------------------------------------------------------------------- */

static struct net_neighbour *known(struct net_ip *ip, uint32_t address) {
    for (int i = 0; i < NET_NEIGHBOURS; i++)
        if (ip->neighbours[i].address == address)
            return &ip->neighbours[i];
    return NULL;
}

/* Checked: the header, read once; that the sender can be a neighbour. */
void net_arp_input(struct net_port *port, const uint8_t *frame, uint32_t size) {
    struct arp_frame heard;
    if (size < sizeof heard) {
        port->counters.runt++;
        return;
    }
    memcpy(&heard, frame, sizeof heard);
    const struct wire_arp *arp = &heard.arp;
    uint32_t sender = wire32(arp->sender);
    uint16_t operation = wire16(arp->operation);
    if (arp->hardware != wire16(ARP_ETHERNET) || arp->protocol != wire16(ETHERNET_IPV4) || arp->hardware_size != 6 ||
        arp->protocol_size != 4 || (operation != ARP_REQUEST && operation != ARP_REPLY) || net_is_group(arp->sender_mac) ||
        net_same_mac(arp->sender_mac, NOBODY) || net_same_mac(arp->sender_mac, port->info->mac)) {
        port->counters.malformed++;
        return;
    }
    /* A sender that has no address yet asks whether this one is free (RFC 5227): it is answered, and not remembered. */
    struct net_ip *ip = port->ip;
    if (sender && ((sender & ip->mask) != (ip->address & ip->mask) || !net_ip_is_host(ip, sender))) {
        port->counters.malformed++;
        return;
    }
    struct net_neighbour *neighbour = sender ? known(ip, sender) : NULL;
    if (neighbour) {
        memcpy(neighbour->mac, arp->sender_mac, 6);
        neighbour->known = 1;
        neighbour->heard = guest_ticks();
    }
    if (operation == ARP_REQUEST && wire32(arp->target) == ip->address)
        send(port, ARP_REPLY, arp->sender_mac, arp->sender_mac, sender);
}

/* ---- asking ------------------------------------------------------------------------------------------------------------ */

static int older(const struct net_ip *ip, uint64_t moment, uint64_t seconds) {
    return ip->second && guest_ticks() - moment > seconds * ip->second;
}

/* An entry for the address: its own, a free one, or that of whom was not heard of for longest. */
static struct net_neighbour *entry(struct net_ip *ip, uint32_t address) {
    struct net_neighbour *oldest = &ip->neighbours[0];
    for (int i = 0; i < NET_NEIGHBOURS; i++) {
        struct net_neighbour *neighbour = &ip->neighbours[i];
        if (neighbour->address == address)
            return neighbour;
        if (!neighbour->address ? oldest->address : oldest->address && neighbour->heard < oldest->heard)
            oldest = neighbour;
    }
    *oldest = (struct net_neighbour){.address = address, .heard = guest_ticks()};
    return oldest;
}

/* Not more often than twenty times a second, whoever would like to send. */
static void ask(struct net_port *port, struct net_neighbour *neighbour, const uint8_t to[6]) {
    uint64_t now = guest_ticks();
    if (neighbour->asked && now - neighbour->asked < port->ip->second / 20)
        return;
    neighbour->asked = now;
    send(port, ARP_REQUEST, to, NOBODY, neighbour->address);
}

/* Hears what comes for `wait_ns`, or until the neighbour has answered: 0, NET_TIMEOUT, NET_CORRUPT. */
static int hear(struct net_port *port, const struct net_neighbour *neighbour, uint64_t wait_ns) {
    struct net_limit wait = {.ns = wait_ns};
    for (;;) {
        int result = net_ip_step(port, &wait);
        if (neighbour->known || result)
            return neighbour->known ? 0 : result;
        if (!net_goes_on(&wait))
            return NET_TIMEOUT;
    }
}

int net_arp_find(struct net_port *port, uint32_t address, uint8_t mac[6], struct net_limit *limit) {
    struct net_neighbour *neighbour = entry(port->ip, address);
    if (neighbour->known && older(port->ip, neighbour->heard, EXPIRE))
        neighbour->known = 0;
    if (neighbour->known && older(port->ip, neighbour->heard, REFRESH) && older(port->ip, neighbour->asked, 1))
        ask(port, neighbour, neighbour->mac);
    uint64_t wait = FIRST_WAIT_NS;
    for (int i = 0; !neighbour->known; i++, wait *= 2) {
        if (i == TRIES)
            return NET_UNREACHABLE;
        ask(port, neighbour, EVERYBODY);
        uint64_t left = net_left(limit);
        int result = hear(port, neighbour, wait < left ? wait : left);
        if (result == NET_CORRUPT || (result == NET_TIMEOUT && !net_left(limit)))
            return result == NET_CORRUPT ? result : NET_UNREACHABLE;
    }
    memcpy(mac, neighbour->mac, 6);
    return 0;
}
