/*
 * region.h: what lies at the start of a region: a header, and a directory of the channels inside.
 *
 * Shared by every side: hosts, unikernels, later Linux guests. Freestanding C11, no dependencies. Little-endian, like every
 * machine it runs on. Sizes and offsets in bytes. The byte-by-byte picture is docs/rings.md.
 *
 *   0                      struct shm_region_header (one page with the directory's first entries)
 *   SHM_DIRECTORY          struct shm_channel_entry [channels]
 *   ...                    the channels, each on a page of its own
 *   data_offset            the user's own data, untouched by anything here
 */
#ifndef SHM_REGION_H
#define SHM_REGION_H

#include <stddef.h>
#include <stdint.h>

#define SHM_MAGIC 0x6e6f696765726873 /* "shregion" */
#define SHM_VERSION 1
#define SHM_NAME 48                  /* bytes of a name, the closing zero included */
#define SHM_DIRECTORY 256            /* offset of the directory */
#define SHM_PAGE 4096
#define SHM_LINE 64                  /* a cache line, and a cell of a ring */
#define SHM_NO_BELL 0xffffffff

enum shm_kind {
    SHM_SPSC = 0,      /* one sender, one receiver */
    SHM_MPSC = 1,      /* many senders, one receiver: a lane for each sender */
    SHM_BROADCAST = 2, /* one sender, any number of receivers, each gets everything or learns what it lost */
    SHM_BARRIER = 3    /* many parties wait for each other */
};

/* Flags of a channel. */
#define SHM_FENCED 1       /* a waiter can't make its peers' processors fence: the ringer fences before it looks */
#define SHM_ALWAYS_RING 2  /* a waiter can't write its sleep flag: the ringer rings every time */

/* State of one end of a channel. Written by the end itself, but for SHM_GONE, which the host writes. */
enum shm_state { SHM_NEVER = 0, SHM_ATTACHED = 1, SHM_CLOSED = 2, SHM_GONE = 3 };

struct shm_region_header {
    uint64_t magic;
    uint32_t version;
    uint32_t channels;     /* entries of the directory */
    uint64_t size;         /* of the whole region */
    uint64_t data_offset;
    uint64_t generation;   /* random: tells a region from a later one of the same name */
    uint32_t bells;        /* bell numbers in the directory are below this */
    uint32_t reserved[5];
    char name[128];        /* "cluster/region", zero-terminated */
    uint8_t reserved2[64];
};

struct shm_channel_entry {
    char name[48];
    uint32_t kind;
    uint32_t flags;
    uint64_t offset;       /* of the channel, from the region's start */
    uint64_t span;         /* bytes the channel takes in all */
    uint64_t size;         /* capacity of (each lane's) ring */
    uint32_t max_message;
    uint32_t lanes;        /* senders of an mpsc, parties of a barrier, else 1 */
    uint32_t data_bell;    /* the receiver's, the readers', the parties' */
    uint32_t space_bell;   /* the senders' */
    uint32_t reserved[8];
};

/*
 * What one end of a channel goes by. Comes from whoever made the region, never from the region itself: a peer may have
 * written there.
 */
struct shm_config {
    uint32_t kind;
    uint32_t flags;
    uint64_t offset;
    uint64_t size;
    uint32_t max_message;
    uint32_t lanes;
    uint32_t lane;         /* this end's number among them */
    uint32_t data_bell;
    uint32_t space_bell;
};

/* Results. Sizes are never negative. */
#define SHM_OK 0
#define SHM_EMPTY (-1)     /* nothing to receive, not everyone at the barrier: wait, then look again */
#define SHM_FULL (-2)      /* no room: wait, then look again */
#define SHM_E_CLOSED (-3)  /* the peer closed its end; nothing is left to receive */
#define SHM_E_GONE (-4)    /* the peer died; nothing is left to receive */
#define SHM_E_TOO_LONG (-5)/* a message over max_message, or over the receiver's buffer */
#define SHM_E_CORRUPT (-6) /* the peer wrote something impossible; the handle's `field` says what */
#define SHM_E_CONFIG (-7)  /* the configuration itself is impossible */

static inline uint32_t shm_load32(const uint32_t *word) {
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline uint64_t shm_load64(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void shm_store32(uint32_t *word, uint32_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline void shm_store64(uint64_t *word, uint64_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline void shm_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Asks for a line that is about to be written, so that the write needs no wait; nothing happens if it can't be had. */
static inline void shm_prefetch_write(const void *line) {
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)line));
#else
    __builtin_prefetch(line, 1);
#endif
}

/*
 * The sleep protocol, both halves. A waiter: shm_sleep_begin, a HEAVY BARRIER (on the host: membarrier; in a unikernel: a
 * call that makes the VMM do it), look again, sleep on the bell. A ringer: publish, then shm_must_ring. The heavy barrier
 * stands in for the fence that the ringer would otherwise need between its publishing store and this load: after it, either
 * the waiter sees what was published, or the ringer sees the flag.
 */
static inline void shm_sleep_begin(uint32_t *flag) {
    __atomic_store_n(flag, 1, __ATOMIC_SEQ_CST);
}

/* Whoever takes the flag rings for all who set it; they hear the bell together, and set it again before they sleep again. */
static inline int shm_must_ring(uint32_t *flag, uint32_t flags) {
    if (flags & SHM_FENCED)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    else
        __atomic_signal_fence(__ATOMIC_SEQ_CST); /* The compiler keeps the order; the waiter sees to the processor. */
    if (flags & SHM_ALWAYS_RING)
        return 1;
    return __atomic_load_n(flag, __ATOMIC_RELAXED) && __atomic_exchange_n(flag, 0, __ATOMIC_ACQ_REL);
}

/* What a peer's state means to one who found nothing left: 0, SHM_E_CLOSED or SHM_E_GONE. An unknown state counts as alive. */
static inline int shm_peer_ended(const uint32_t *state) {
    switch (shm_load32(state)) {
    case SHM_CLOSED:
        return SHM_E_CLOSED;
    case SHM_GONE:
        return SHM_E_GONE;
    default:
        return 0;
    }
}

/*
 * Copies entry `index` of the directory of a region of `size` bytes to *entry. Checked: magic, version, that the entry and
 * the channel it describes lie inside `size`, and that the name ends. Returns SHM_OK or SHM_E_CORRUPT with *field set.
 */
static inline int shm_directory_entry(const void *region, uint64_t size, uint32_t index,
                                      struct shm_channel_entry *entry, const char **field) {
    const struct shm_region_header *header = region;
    uint64_t end = SHM_DIRECTORY + ((uint64_t)index + 1) * sizeof *entry;
    *field = "region size";
    if (size < SHM_PAGE || end > size)
        return SHM_E_CORRUPT;
    *field = "magic";
    if (__atomic_load_n(&header->magic, __ATOMIC_ACQUIRE) != SHM_MAGIC)
        return SHM_E_CORRUPT;
    *field = "version";
    if (shm_load32(&header->version) != SHM_VERSION)
        return SHM_E_CORRUPT;
    __builtin_memcpy(entry, (const char *)region + end - sizeof *entry, sizeof *entry);
    *field = "channel name";
    if (!entry->name[0] || entry->name[SHM_NAME - 1])
        return SHM_E_CORRUPT;
    *field = "channel offset";
    if (entry->offset % SHM_LINE || entry->offset > size)
        return SHM_E_CORRUPT;
    *field = "channel span";
    if (entry->span > size - entry->offset)
        return SHM_E_CORRUPT;
    return SHM_OK;
}

_Static_assert(sizeof(struct shm_region_header) == SHM_DIRECTORY, "the directory follows the header");
_Static_assert(sizeof(struct shm_channel_entry) == 128, "the layout is fixed");

#endif
