/* state.c: where a channel's words of state lie, and how much memory it takes. */
#include "end.h"

uint64_t end_limit(uint32_t kind, uint64_t size) {
    if (size < RING_MIN_SIZE || size > RING_MAX_SIZE)
        return 0;
    uint64_t limit = kind == SHM_BROADCAST ? broadcast_limit(size) : ring_limit(size);
    return limit < RING_PAD ? limit : RING_PAD - 1;
}

static int power_of_two(uint64_t size) {
    return size >= RING_MIN_SIZE && size <= RING_MAX_SIZE && !(size & (size - 1));
}

uint64_t end_bytes(const struct shm_config *config) {
    switch (config->kind) {
    case SHM_SPSC:
        return power_of_two(config->size) ? ring_bytes(config->size) : 0;
    case SHM_MPSC:
        if (!power_of_two(config->size) || config->lanes < 1 || config->lanes > MPSC_MAX_LANES)
            return 0;
        return mpsc_bytes(config->size, config->lanes);
    case SHM_BROADCAST:
        return power_of_two(config->size) ? broadcast_bytes(config->size) : 0;
    case SHM_BARRIER:
        return config->lanes >= 1 && config->lanes <= BARRIER_MAX_PARTIES ? barrier_bytes(config->lanes) : 0;
    default:
        return 0;
    }
}

/* The channel's start, or NULL. Checked: configuration, alignment, that all of it lies in the region. */
static char *channel_at(void *region, uint64_t region_size, const struct shm_config *config) {
    uint64_t bytes = end_bytes(config);
    if (!bytes || config->offset % SHM_LINE || config->offset > region_size || bytes > region_size - config->offset)
        return NULL;
    return (char *)region + config->offset;
}

/* The word of state of end `role`; an mpsc's consumer has one in each lane, and `lane` says which is meant. */
static uint32_t *state_of(char *channel, const struct shm_config *config, int role, uint32_t lane) {
    switch (config->kind) {
    case SHM_SPSC: {
        struct ring_shared *ring = (struct ring_shared *)channel;
        return role == END_SEND ? &ring->producer : &ring->consumer;
    }
    case SHM_MPSC: {
        if (lane >= config->lanes)
            return NULL;
        struct ring_shared *ring = mpsc_lane(channel, config->size, lane);
        return role == END_SEND ? &ring->producer : &ring->consumer;
    }
    case SHM_BROADCAST:
        return role == END_SEND ? &((struct broadcast_shared *)channel)->writer : NULL;
    default:
        return lane < config->lanes ? &((struct barrier_party *)((struct barrier_shared *)channel + 1))[lane].state : NULL;
    }
}

static void mark(uint32_t *state, uint32_t value) {
    if (value != SHM_GONE || shm_load32(state) != SHM_CLOSED)
        shm_store32(state, value);
}

int end_mark(void *region, uint64_t region_size, const struct shm_config *config, int role, uint32_t value) {
    char *channel = channel_at(region, region_size, config);
    if (!channel)
        return SHM_E_CONFIG;
    if (config->kind == SHM_MPSC && role == END_RECEIVE) {
        for (uint32_t i = 0; i < config->lanes; i++)
            mark(state_of(channel, config, role, i), value);
        mark(&((struct mpsc_shared *)channel)->consumer, value);
        return SHM_OK;
    }
    uint32_t *state = state_of(channel, config, role, config->lane);
    if (state)
        mark(state, value);
    return SHM_OK; /* Readers of a broadcast have no state. */
}

int end_state(void *region, uint64_t region_size, const struct shm_config *config, int role) {
    char *channel = channel_at(region, region_size, config);
    if (!channel)
        return SHM_E_CONFIG;
    uint32_t lane = config->kind == SHM_MPSC && role == END_RECEIVE ? 0 : config->lane;
    uint32_t *state = state_of(channel, config, role, lane);
    return state ? (int)(shm_load32(state) & 0xff) : SHM_NEVER;
}
