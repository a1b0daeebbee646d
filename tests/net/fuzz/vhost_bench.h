/*
 * vhost_bench.h: what the vhost-user fuzzers share: random numbers, a port without its thread, a guest and its driver.
 */
#ifndef NET_VHOST_BENCH_H
#define NET_VHOST_BENCH_H

#include <stdint.h>

#include "vhost_port.h"
#include "vhost_user.h"

/* --- random numbers: one stream for a case, so that a case can be run again alone --- */
void random_seed(uint64_t seed, uint64_t number);
uint64_t random_next(void);
uint64_t below(uint64_t limit);
/* What breaks arithmetic: edges, near `size`, below it, anything. */
uint64_t nasty(uint64_t size);

/* --- the port: every mapping it makes lies between pages without access --- */
extern struct port *bench_port;
struct vhost_user *bench_user(void);
void bench_open(uint32_t mtu);
void bench_close(void);
/* A front end comes; goes, or is thrown out. */
void bench_begin(void);
void bench_end(enum port_error error);
/* What vhost_user_message says to a message. Descriptors are duplicated. */
int bench_message(struct vhost_message *message, const int *fds, uint32_t fd_count);
/* The same, for one that is all right; *reply, if it is not NULL, is what it answered. */
int bench_tell(uint32_t request, const void *payload, uint32_t size, const int *fds, uint32_t fd_count,
               struct vhost_message *reply);
/* Reads messages from a socket until its other end goes, or is wrong. */
enum port_error bench_serve(int fd);
/* Mappings of the port that there are now. */
int bench_mappings(void);
/* Ends the program where the port's own view of its memory and queues doesn't hold together. */
void bench_check(void);

/* --- the guest's memory: four regions in two files --- */
enum { REGIONS = 4, REGION_ADJACENT = 1 }; /* region 1 begins where region 0 ends */
struct guest_region {
    uint64_t gpa, size, uva, offset;
    int file;
    uint8_t *bytes; /* the guest's own view */
};
extern struct guest_region guest_regions[REGIONS];
extern int guest_files[2];
extern int guest_canary; /* is it wrong to write to the files elsewhere? */
void guest_open(void);
/* All zero; aborts if the port wrote where no region is. */
void guest_clear(void);
/* Cut short, and whole again. */
void guest_cut(int file);
void guest_mend(void);
/* `size` bytes at an address: NULL unless in one region. */
uint8_t *guest_at(uint64_t gpa, uint64_t size);
uint64_t guest_room(uint64_t gpa); /* bytes from there to the end of its region; 0 if in none */
uint64_t guest_user(uint64_t gpa); /* the front end's address of it */
uint64_t some_address(void);
void poke(uint64_t gpa, const void *from, uint64_t size); /* across regions, too; what is outside is left out */
void peek(uint64_t gpa, void *to, uint64_t size);
int guest_give(int separately); /* tells the port of it: what vhost_user_message said */

/* --- its driver --- */
enum { QUEUE_LIMIT = 256, SEGMENTS = 40 };
struct segment {
    uint64_t gpa;
    uint32_t size;
};
struct driver_queue {
    uint32_t index;
    uint16_t size, next_avail, next_used, next_desc;
    uint64_t desc, avail, used;
    uint16_t heads[QUEUE_LIMIT]; /* in the order of the available ring */
};
struct driver {
    uint64_t features;
    uint32_t pairs;
    uint64_t heap, data, tables;
    struct driver_queue queues[VHOST_RINGS];
};
void driver_open(void); /* makes its eventfds, once */
/*
 * Resets the device, negotiates, gives memory (if it hasn't) and queues as a front end does: 1, or 0 if it was refused.
 */
int driver_start(struct driver *driver, uint64_t features, uint32_t pairs);
/* `size` bytes of data room; crosses the border between two regions now and then. */
uint64_t driver_room(struct driver *driver, uint32_t size);
/* Makes a chain available. Its head. */
uint16_t driver_post(struct driver_queue *queue, const struct segment *segments, uint32_t count, int write,
                     int indirect, uint64_t table);
uint16_t driver_index(const struct driver_queue *queue); /* the used index, as the driver sees it */
/* The next used element: 1, or 0 if there is none. */
int driver_used(struct driver_queue *queue, uint32_t *head, uint32_t *size);

/* A new driver in the session, whose frames in both directions arrive as they were: aborts if they don't. */
void driver_prove(void);

/* --- the fuzzers --- */
struct fuzzer {
    const char *name;
    uint32_t mtu;
    void (*begin)(int race);
    void (*one_case)(void);
    void (*end)(void); /* prints what it did */
};
extern const struct fuzzer queues_fuzzer, messages_fuzzer;

#endif
