/* addresses.c: see addresses.h. */
#include "addresses.h"

#include <stdlib.h>

enum { WAYS = 8 };
static const uint64_t FIXED = UINT64_MAX;
static const uint64_t VLAN_BITS = 0xfff0;

struct entry {
    uint64_t key;           /* 0: free */
    struct port *port;
    uint64_t heard_ns;      /* FIXED: the port's own */
};

struct addresses {
    uint64_t age_ns;
    uint32_t sets;          /* a power of two */
    struct entry entries[];
};

struct addresses *addresses_new(uint32_t room, uint64_t age_ns) {
    uint32_t sets = 1;
    while (sets * WAYS < room)
        sets *= 2;
    struct addresses *table = calloc(1, sizeof *table + (size_t)sets * WAYS * sizeof(struct entry));
    if (table) {
        table->age_ns = age_ns;
        table->sets = sets;
    }
    return table;
}

void addresses_free(struct addresses *table) {
    free(table);
}

static struct entry *set_of(const struct addresses *table, uint64_t key) {
    /* Fibonacci hashing: the upper bits of the product depend on all of the key's. */
    uint64_t set = (key * 0x9e3779b97f4a7c15ull) >> 32 & (table->sets - 1);
    return (struct entry *)&table->entries[set * WAYS];
}

static struct entry *look_up(const struct addresses *table, uint64_t key) {
    struct entry *set = set_of(table, key);
    for (int i = 0; i < WAYS; i++)
        if (set[i].key == key)
            return &set[i];
    return NULL;
}

static struct entry *oldest(const struct addresses *table, uint64_t key) {
    struct entry *set = set_of(table, key), *found = set;
    for (int i = 0; i < WAYS; i++) {
        if (!set[i].key)
            return &set[i];
        if (set[i].heard_ns < found->heard_ns)
            found = &set[i];
    }
    return found->heard_ns == FIXED ? NULL : found;
}

int addresses_learn(struct addresses *table, uint64_t key, struct port *port, uint64_t now_ns) {
    struct entry *entry = look_up(table, key);
    if (entry && entry->heard_ns == FIXED)
        return entry->port == port;
    if (key & VLAN_BITS) {
        const struct entry *own = look_up(table, key & ~VLAN_BITS);
        if (own && own->heard_ns == FIXED && own->port != port)
            return 0;
    }
    if (!entry)
        entry = oldest(table, key);
    if (entry)
        *entry = (struct entry){key, port, now_ns};
    return 1;
}

void addresses_fix(struct addresses *table, uint64_t key, struct port *port) {
    struct entry *entry = look_up(table, key);
    if (!entry)
        entry = oldest(table, key);
    if (entry)
        *entry = (struct entry){key, port, FIXED};
}

struct port *addresses_find(const struct addresses *table, uint64_t key, uint64_t now_ns) {
    const struct entry *entry = look_up(table, key);
    if (!entry && key & VLAN_BITS) {
        entry = look_up(table, key & ~VLAN_BITS);
        if (entry && entry->heard_ns != FIXED)
            entry = NULL;
    }
    if (!entry || (entry->heard_ns != FIXED && now_ns - entry->heard_ns > table->age_ns))
        return NULL;
    return entry->port;
}

void addresses_forget(struct addresses *table, const struct port *port) {
    for (uint32_t i = 0; i < table->sets * WAYS; i++)
        if (table->entries[i].port == port)
            table->entries[i] = (struct entry){0};
}

uint32_t addresses_list(const struct addresses *table, uint64_t now_ns, struct switch_address *found, uint32_t room) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < table->sets * WAYS && count < room; i++) {
        const struct entry *entry = &table->entries[i];
        uint64_t age_ns = entry->heard_ns == FIXED ? 0 : now_ns - entry->heard_ns;
        if (!entry->key || age_ns > table->age_ns)
            continue;
        struct switch_address *to = &found[count++];
        for (int byte = 0; byte < 6; byte++)
            to->mac[byte] = (uint8_t)(entry->key >> (56 - 8 * byte));
        to->vlan = (uint16_t)(entry->key >> 4 & 0xfff);
        to->port = entry->port->id;
        to->age_ns = age_ns;
    }
    return count;
}
