/*
 * barrier.h: a number of parties that wait for each other, as often as they like.
 *
 * Each party has a word of its own: the generation it has arrived at, plus one. The generation moves on when all words say
 * so; whoever sees that first moves it. A party that dies is seen by its state; one that takes its place goes on from its
 * word. A hostile party can at most open the barrier early or never, and never is limited by the callers' time limits.
 */
#ifndef SHM_BARRIER_H
#define SHM_BARRIER_H

#include "region.h"

#define BARRIER_MAX_PARTIES 16384

struct barrier_shared {
    _Alignas(SHM_LINE) uint32_t generation;
    _Alignas(SHM_LINE) uint32_t data_wait; /* any party, when it goes to sleep */
};

/* Behind it: one for each party. */
struct barrier_party {
    uint32_t arrived;       /* generation + 1, modulo 2^32 */
    uint32_t state;         /* enum shm_state */
};

struct barrier {
    struct barrier_shared *shared;
    struct barrier_party *parties;
    uint32_t count;
    uint32_t self;
    uint32_t generation;    /* the one this party waits to see end */
    uint32_t flags;
    const char *field;
};

static inline uint64_t barrier_bytes(uint32_t parties) {
    return sizeof(struct barrier_shared) + parties * sizeof(struct barrier_party);
}

/* Checked: the number of parties, and this one's. */
static inline int barrier_attach(struct barrier *barrier, void *shared, uint32_t parties, uint32_t self, uint32_t flags) {
    *barrier = (struct barrier){.shared = shared, .count = parties, .self = self, .flags = flags};
    barrier->parties = (struct barrier_party *)(barrier->shared + 1);
    barrier->field = "lane";
    if (parties < 1 || parties > BARRIER_MAX_PARTIES || self >= parties)
        return SHM_E_CONFIG;
    shm_store32(&barrier->parties[self].state, SHM_ATTACHED);
    return SHM_OK;
}

/* Moves the generation on if everyone has arrived. Returns 1 if this call did. */
static inline int barrier_open_if_all(struct barrier *barrier) {
    uint32_t generation = barrier->generation;
    for (uint32_t i = 0; i < barrier->count; i++)
        if (shm_load32(&barrier->parties[i].arrived) != generation + 1)
            return 0;
    return __atomic_compare_exchange_n(&barrier->shared->generation, &generation, generation + 1, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_ACQUIRE);
}

/* Arrives. Returns 1 when the caller must ring for the others. Then barrier_passed says how it stands. */
static inline int barrier_arrive(struct barrier *barrier) {
    barrier->generation = shm_load32(&barrier->shared->generation);
    /* Of two that arrive last at the same time, at least one must see the other: hence the full fence. */
    __atomic_store_n(&barrier->parties[barrier->self].arrived, barrier->generation + 1, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return barrier_open_if_all(barrier) && shm_must_ring(&barrier->shared->data_wait, barrier->flags | SHM_FENCED);
}

/* SHM_OK once everyone has arrived, SHM_EMPTY before, SHM_E_GONE or SHM_E_CLOSED when someone who has not arrived ended. */
static inline int barrier_passed(const struct barrier *barrier) {
    if (shm_load32(&barrier->shared->generation) != barrier->generation)
        return SHM_OK;
    for (uint32_t i = 0; i < barrier->count; i++) {
        int ended = shm_peer_ended(&barrier->parties[i].state);
        if (ended && shm_load32(&barrier->parties[i].arrived) != barrier->generation + 1)
            return shm_load32(&barrier->shared->generation) != barrier->generation ? SHM_OK : ended;
    }
    return SHM_EMPTY;
}

static inline void barrier_close(struct barrier *barrier) {
    shm_store32(&barrier->parties[barrier->self].state, SHM_CLOSED);
}

#endif
