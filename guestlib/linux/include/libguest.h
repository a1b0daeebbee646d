/*
 * libguest.h: regions and channels in a Linux guest, for programs in C. What guestlib.attach() is for Python.
 *
 *     struct guest_end words;
 *     if (guest_open(&words, "words", "receive", -1, 1))
 *         die(guest_error());
 *     int64_t size = end_receive(&words.end, buffer, sizeof buffer, -1);
 *
 * Sources: guestlib/linux/src/region.c and device.c, shm/src/end.c, bell.c and state.c. The calls on an open end are those of
 * shm/src/end.h.
 */
#ifndef LIBGUEST_H
#define LIBGUEST_H

#include "end.h"

#include <stddef.h>
#include <stdint.h>

/* Where the kernel and hostd show what there is: "/sys", "/run/hostd", "/dev", but for tests. */
struct guest_paths {
    const char *sysfs, *run, *dev;
};
extern struct guest_paths guest_paths;

#define GUEST_NAME 64

/* A line of /run/hostd/regions. */
struct guest_region_line {
    char name[GUEST_NAME], address[32], access[8];
    unsigned peer;
    unsigned long size;           /* in bytes; 0: not said */
};

/* A line of /run/hostd/channels; `told`: `config` came with it, else only lane, lanes and flags of it are known. */
struct guest_end_line {
    char channel[SHM_NAME], region[GUEST_NAME], role[16];
    struct shm_config config;
    int told;
};

/* Both call `each` for every line until it returns other than 0, which they return. -1: the file can't be read as it should. */
int guest_regions(int (*each)(const struct guest_region_line *line, void *context), void *context);
int guest_ends(int (*each)(const struct guest_end_line *line, void *context), void *context);

/* A region's memory and device. */
struct guest_region {
    struct guest_region_line line;
    char *memory;
    uint64_t mapped, size;        /* of the device's BAR; of the region */
    int readonly;
    void *page;                   /* the registers' */
    struct bell_device device;
    char uio[64], config[300];
};

/* All of these: 0, or -1 and guest_error() has the sentence. `hear`: sleep on the interrupt where there is UIO. */
int guest_region_open(struct guest_region *region, const char *name, int hear);
void guest_region_close(struct guest_region *region);

/* The configuration of a channel by the region's own directory. Checked as shm_directory_entry, and that it can be. */
int guest_directory(const struct guest_region *region, const char *channel, struct shm_config *config);

struct guest_end {
    struct guest_region region;
    struct guest_end_line line;
    struct shm_end end;
    int lock;
};

/* Opens this guest's end of a channel; `lane` -1: the first that no other process of this guest has. */
int guest_open(struct guest_end *end, const char *channel, const char *role, int lane, int hear);
void guest_close(struct guest_end *end);

const char *guest_error(void);
/* What a negative result of an end_* call means. */
const char *guest_result(const struct guest_end *end, int64_t result);

/* device.c: the UIO device file of the PCI device at `address`, bound to uio_pci_generic now if need be. 0, or -1 if none. */
int device_uio(const char *address, char *path, size_t room);
void device_enable(const char *address);

#endif
