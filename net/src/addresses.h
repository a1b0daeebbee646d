/*
 * addresses.h: where an address belongs: to the port that was given it, or where it was heard last.
 *
 * What was heard lies in sets of eight: who sends from ever new addresses pushes out those of one set that were not heard for
 * longest, in a time that does not depend on how many there are; which addresses share a set nobody can know. Ports' own
 * addresses lie apart, so that nothing that is heard takes their place.
 */
#ifndef NET_ADDRESSES_H
#define NET_ADDRESSES_H

#include "switch.h"

struct addresses;

/* For `room` addresses that are heard at least; NULL with errno. */
struct addresses *addresses_new(uint32_t room, uint64_t age_ns);
void addresses_free(struct addresses *table);

/* An address with its VLAN, as one number that is never 0. */
static inline uint64_t address_key(const uint8_t *mac, uint16_t vlan) {
    uint64_t key = 0;
    for (int i = 0; i < 6; i++)
        key = key << 8 | mac[i];
    return key << 16 | vlan << 4 | 1;
}

static inline int address_is_group(const uint8_t *mac) {
    return mac[0] & 1;
}

/* `port` has sent from it: 1, or 0 if the address is another port's own (addresses_fix). */
int addresses_learn(struct addresses *table, uint64_t key, struct port *port, uint64_t now_ns);
/* The port's own address, in every VLAN: never forgotten, never learnt elsewhere. 0, or -EADDRINUSE if it is another's. */
int addresses_fix(struct addresses *table, uint64_t key, struct port *port);
/* Where it belongs, or was heard not longer ago than the table's age; or NULL. */
struct port *addresses_find(const struct addresses *table, uint64_t key, uint64_t now_ns);
/* What was heard from the port; with `own`, its own address too. */
void addresses_forget(struct addresses *table, const struct port *port, int own);
uint32_t addresses_list(const struct addresses *table, uint64_t now_ns, struct switch_address *found, uint32_t room);

#endif
