/* addresses.c: see addresses.h. */
#include "addresses.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { WAYS = 8, OWN_SLOTS = 4 * SWITCH_PORTS };
static const uint64_t VLAN_BITS = 0xfff0;

struct own {
    uint64_t key;           /* without VLAN; 0: free */
    struct port *port;
};

struct heard {
    uint64_t key;           /* 0: free */
    struct port *port;
    uint64_t at_ns;
};

struct addresses {
    uint64_t age_ns;
    uint64_t seed;          /* odd */
    uint32_t sets;          /* a power of two */
    uint32_t own_count;
    struct own own[OWN_SLOTS]; /* probed from where the hash says, up to a free one */
    struct heard heard[];
};

struct addresses *addresses_new(uint32_t room, uint64_t age_ns) {
    uint32_t sets = 1;
    while (sets * WAYS < room)
        sets *= 2;
    struct addresses *table = calloc(1, sizeof *table + (size_t)sets * WAYS * sizeof(struct heard));
    if (!table)
        return NULL;
    table->age_ns = age_ns;
    table->sets = sets;
    if (getrandom(&table->seed, sizeof table->seed, GRND_NONBLOCK) != sizeof table->seed)
        table->seed = (uintptr_t)table;
    table->seed |= 1;
    return table;
}

void addresses_free(struct addresses *table) {
    free(table);
}

/* Multiplicative hashing by a number that nobody knows: the upper bits of the product depend on all of the key's. */
static uint32_t hash(const struct addresses *table, uint64_t key) {
    return (uint32_t)(key * table->seed >> 32);
}

/* --- ports' own --- */

/* The slot that has the key, or the free one where it would be. There are more slots than ports. */
static struct own *own_slot(const struct addresses *table, uint64_t key) {
    uint32_t slot = hash(table, key) % OWN_SLOTS;
    while (table->own[slot].key && table->own[slot].key != key)
        slot = (slot + 1) % OWN_SLOTS;
    return (struct own *)&table->own[slot];
}

static struct port *owner_of(const struct addresses *table, uint64_t key) {
    return table->own_count ? own_slot(table, key & ~VLAN_BITS)->port : NULL;
}

int addresses_fix(struct addresses *table, uint64_t key, struct port *port) {
    struct own *slot = own_slot(table, key & ~VLAN_BITS);
    if (slot->port && slot->port != port)
        return -EADDRINUSE;
    table->own_count += !slot->port;
    *slot = (struct own){key & ~VLAN_BITS, port};
    return 0;
}

/* What was probed past the slot that becomes free takes its place anew. */
static void unfix(struct addresses *table, struct own *slot) {
    uint32_t at = (uint32_t)(slot - table->own);
    *slot = (struct own){0};
    table->own_count--;
    while (table->own[at = (at + 1) % OWN_SLOTS].key) {
        struct own moved = table->own[at];
        table->own[at] = (struct own){0};
        *own_slot(table, moved.key) = moved;
    }
}

/* --- what was heard --- */

static struct heard *set_of(const struct addresses *table, uint64_t key) {
    return (struct heard *)&table->heard[(uint64_t)(hash(table, key) & (table->sets - 1)) * WAYS];
}

/* The entry that has the key, or the one that it may have: a free one, or the oldest of its set. */
static struct heard *heard_slot(const struct addresses *table, uint64_t key) {
    struct heard *set = set_of(table, key), *found = set;
    for (int i = 0; i < WAYS; i++) {
        if (set[i].key == key)
            return &set[i];
        if (set[i].at_ns < found->at_ns) /* A free one was heard at 0. */
            found = &set[i];
    }
    return found;
}

int addresses_learn(struct addresses *table, uint64_t key, struct port *port, uint64_t now_ns) {
    struct port *owner = owner_of(table, key);
    if (owner)
        return owner == port;
    *heard_slot(table, key) = (struct heard){key, port, now_ns};
    return 1;
}

struct port *addresses_find(const struct addresses *table, uint64_t key, uint64_t now_ns) {
    struct port *owner = owner_of(table, key);
    if (owner)
        return owner;
    const struct heard *found = heard_slot(table, key);
    return found->key == key && now_ns - found->at_ns <= table->age_ns ? found->port : NULL;
}

/* --- all of them --- */

void addresses_forget(struct addresses *table, const struct port *port, int own) {
    for (uint32_t i = 0; i < table->sets * WAYS; i++)
        if (table->heard[i].port == port)
            table->heard[i] = (struct heard){0};
    for (uint32_t i = 0; own && i < OWN_SLOTS; i++)
        if (table->own[i].port == port) {
            unfix(table, &table->own[i]);
            return; /* A port has one. */
        }
}

static struct switch_address describe(uint64_t key, const struct port *port, uint64_t age_ns) {
    struct switch_address address = {.vlan = (uint16_t)(key >> 4 & 0xfff), .port = port->id, .age_ns = age_ns};
    for (int byte = 0; byte < 6; byte++)
        address.mac[byte] = (uint8_t)(key >> (56 - 8 * byte));
    return address;
}

uint32_t addresses_list(const struct addresses *table, uint64_t now_ns, struct switch_address *found, uint32_t room) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < OWN_SLOTS && count < room; i++)
        if (table->own[i].key)
            found[count++] = describe(table->own[i].key, table->own[i].port, 0);
    for (uint32_t i = 0; i < table->sets * WAYS && count < room; i++) {
        const struct heard *heard = &table->heard[i];
        /* A round may have begun after `now_ns` was taken. */
        uint64_t age_ns = now_ns > heard->at_ns ? now_ns - heard->at_ns : 0;
        if (heard->key && age_ns <= table->age_ns)
            found[count++] = describe(heard->key, heard->port, age_ns);
    }
    return count;
}
