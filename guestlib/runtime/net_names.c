/* net_names.c: names of guests, and addresses in words. */
#include "net.h"

static const char *text(struct guest_span span) {
    return (const char *)guest_info() + span.offset;
}

/* Are the first `size` bytes of `name` all of `whole`? */
static int is(const char *name, size_t size, const char *whole) {
    return strlen(whole) == size && strncmp(name, whole, size) == 0;
}

/* The address on one network of the guest that the first `size` bytes of `name` name, or 0. */
static uint32_t find(const struct guest_network *network, const char *name, size_t size) {
    if (is(name, size, guest_name()))
        return network->address;
    const struct guest_host *hosts = (const struct guest_host *)text(network->hosts);
    for (uint32_t i = 0; i < network->hosts.size; i++)
        if (is(name, size, text(hosts[i].name)))
            return hosts[i].address;
    return 0;
}

/* Four numbers with dots: 1, or 0. */
static int parse(const char *words, uint32_t *address) {
    *address = 0;
    for (int part = 0; part < 4; part++) {
        uint32_t value = 0;
        int digits = 0;
        for (; *words >= '0' && *words <= '9' && digits < 4; digits++)
            value = value * 10 + (uint32_t)(*words++ - '0');
        if (!digits || digits > 3 || value > 255 || *words++ != (part < 3 ? '.' : 0))
            return 0;
        *address = *address << 8 | value;
    }
    return 1;
}

uint32_t net_resolve(const char *name) {
    const struct guest_network *networks = (const struct guest_network *)text(guest_info()->networks);
    uint32_t address;
    if (parse(name, &address))
        return address;
    size_t size = strlen(name), dot = size;
    for (size_t i = 0; i < size; i++)
        if (name[i] == '.')
            dot = i;
    for (uint32_t i = 0; i < guest_info()->networks.size; i++) {
        if (dot < size && strcmp(name + dot + 1, networks[i].name) != 0)
            continue;
        address = find(&networks[i], name, dot);
        if (address)
            return address;
    }
    return 0;
}

char *net_address_text(uint32_t address, char words[16]) {
    char *at = words;
    for (int shift = 24; shift >= 0; shift -= 8) {
        uint32_t value = address >> shift & 255;
        if (value >= 100)
            *at++ = (char)('0' + value / 100);
        if (value >= 10)
            *at++ = (char)('0' + value / 10 % 10);
        *at++ = (char)('0' + value % 10);
        *at++ = shift ? '.' : 0;
    }
    return words;
}
