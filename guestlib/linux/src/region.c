/* region.c: see libguest.h. */
#define _GNU_SOURCE
#include "libguest.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096
#define KINDS "spsc", "mpsc", "broadcast", "barrier"

struct guest_paths guest_paths = {"/sys", HOSTD_RUN, "/dev"};

static char sentence[512];

const char *guest_error(void) {
    return sentence;
}

__attribute__((format(printf, 1, 2))) static int fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(sentence, sizeof sentence, format, list);
    va_end(list);
    return -1;
}

/* ---- what hostd handed over -------------------------------------------------------------------------------------------- */

static int parse_region(char *text, struct guest_region_line *line) {
    *line = (struct guest_region_line){0};
    return sscanf(text, "%63s %31s %7s %u %lu", line->name, line->address, line->access, &line->peer, &line->size) >= 4;
}

static int parse_end(char *text, struct guest_end_line *line) {
    static const char *const kinds[] = {KINDS};
    char kind[16];
    unsigned long offset, size;
    struct shm_config *c = &line->config;
    *line = (struct guest_end_line){0};
    int count = sscanf(text, "%47s %63s %15s %u %u %u %15s %lu %lu %u %u %u", line->channel, line->region, line->role,
                       &c->lane, &c->lanes, &c->flags, kind, &offset, &size, &c->max_message, &c->data_bell,
                       &c->space_bell);
    if (count == 6)
        return 1;
    if (count != 12)
        return 0;
    for (c->kind = 0; c->kind < 4 && strcmp(kinds[c->kind], kind);)
        c->kind++;
    c->offset = offset;
    c->size = size;
    line->told = 1;
    return c->kind < 4;
}

static int read_file(const char *name, char **text) {
    char path[300];
    snprintf(path, sizeof path, "%s/%s", guest_paths.run, name);
    ssize_t size = read_whole(path, text);
    if (size < 0 && size != -ENOENT)
        return fail("%s: cannot be read: %s", path, strerror((int)-size));
    return size < 0 ? 1 : 0;
}

int guest_regions(int (*each)(const struct guest_region_line *line, void *context), void *context) {
    struct guest_region_line line;
    char *text, *rest;
    int result = read_file("regions", &text);
    if (result)
        return result < 0 ? -1 : 0;
    rest = text;
    for (char *one; !result && (one = strsep(&rest, "\n"));)
        if (*one)
            result = parse_region(one, &line) ? each(&line, context)
                                              : fail("%s/regions: a line is not REGION PCI-ADDRESS ACCESS PEER SIZE",
                                                     guest_paths.run);
    free(text);
    return result;
}

int guest_ends(int (*each)(const struct guest_end_line *line, void *context), void *context) {
    struct guest_end_line line;
    char *text, *rest;
    int result = read_file("channels", &text);
    if (result)
        return result < 0 ? -1 : 0;
    rest = text;
    for (char *one; !result && (one = strsep(&rest, "\n"));)
        if (*one)
            result = parse_end(one, &line) ? each(&line, context)
                                           : fail("%s/channels: a line is not CHANNEL REGION ROLE LANE LANES FLAGS ...",
                                                  guest_paths.run);
    free(text);
    return result;
}

/* ---- regions ----------------------------------------------------------------------------------------------------------- */

struct wanted_region {
    const char *name;
    struct guest_region_line *line;
};

static int is_region(const struct guest_region_line *line, void *context) {
    struct wanted_region *wanted = context;
    if (strcmp(line->name, wanted->name))
        return 0;
    *wanted->line = *line;
    return 1;
}

/*
 * sysfs maps a BAR uncached. On Intel's processors KVM has a guest's RAM, which a region is, cached all the same; on AMD's the
 * guest's own memory type counts, and every look at a ring would go to memory. There /dev/mem, which maps what is no RAM as
 * the MTRRs say, is the way to a cached mapping; NULL where there is none, or it isn't needed.
 */
static void *map_cached(const char *folder, uint64_t size, int writable) {
    char path[300], text[4096];
    unsigned long start = 0;
    snprintf(path, sizeof path, "%s/resource", folder);
    if (read_small(path, text, sizeof text) < 0 || sscanf(text, "%*[^\n]\n%*[^\n]\n%lx", &start) != 1 || !start)
        return NULL;
    FILE *cpus = fopen("/proc/cpuinfo", "re");
    int counts = 0;
    while (cpus && !counts && fgets(text, sizeof text, cpus))
        counts = !strncmp(text, "vendor_id", 9) && (strstr(text, "AuthenticAMD") || strstr(text, "HygonGenuine"));
    if (cpus)
        fclose(cpus);
    snprintf(path, sizeof path, "%s/mem", guest_paths.dev);
    int fd = counts ? open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC) : -1;
    if (fd < 0)
        return NULL;
    void *memory = mmap(NULL, size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, (off_t)start);
    close(fd);
    return memory == MAP_FAILED ? NULL : memory;
}

static void *map_file(const char *path, uint64_t *size, int writable) {
    struct stat found;
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &found)) {
        fail("%s: cannot be opened: %s%s", path, strerror(errno), errno == EACCES ? "; only root may map a device" : "");
        return NULL;
    }
    *size = *size ? *size : (uint64_t)found.st_size;
    void *memory = mmap(NULL, *size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
    close(fd);
    if (memory != MAP_FAILED)
        return memory;
    fail("%s: cannot be mapped: %s", path, strerror(errno));
    return NULL;
}

/* The region's memory: BAR2, cached if that can be had. */
static void *map_memory(const char *folder, uint64_t *size, int writable) {
    struct stat found;
    char path[300];
    snprintf(path, sizeof path, "%s/resource2", folder);
    void *memory = stat(path, &found) ? NULL : map_cached(folder, (uint64_t)found.st_size, writable);
    if (!memory)
        return map_file(path, size, writable);
    *size = (uint64_t)found.st_size;
    return memory;
}

/* Where in their page the registers begin: the first word of `resource`. */
static uint64_t registers_offset(const char *folder) {
    char path[300], text[1024];
    snprintf(path, sizeof path, "%s/resource", folder);
    return read_small(path, text, sizeof text) < 0 ? 0 : strtoull(text, NULL, 16) % PAGE;
}

int guest_region_open(struct guest_region *region, const char *name, int hear) {
    *region = (struct guest_region){0};
    struct wanted_region wanted = {name, &region->line};
    int found = guest_regions(is_region, &wanted);
    if (found <= 0)
        return found < 0 ? -1 : fail("region %s is none of this guest's", name);
    char folder[200], path[300];
    snprintf(folder, sizeof folder, "%s/bus/pci/devices/%s", guest_paths.sysfs, region->line.address);
    region->readonly = !strcmp(region->line.access, "ro");
    device_enable(region->line.address);
    region->memory = map_memory(folder, &region->mapped, !region->readonly);
    if (!region->memory)
        return -1;
    const struct shm_region_header *header = (const struct shm_region_header *)region->memory;
    uint64_t size = region->mapped >= PAGE && shm_load64(&header->magic) == SHM_MAGIC ? shm_load64(&header->size) : region->mapped;
    if (region->line.size)
        size = region->line.size; /* A peer may have written to the header. */
    region->size = size < region->mapped ? size : region->mapped;
    uint64_t page = PAGE;
    snprintf(path, sizeof path, "%s/resource0", folder);
    region->page = map_file(path, &page, 1);
    if (!region->page) {
        guest_region_close(region);
        return -1;
    }
    snprintf(region->config, sizeof region->config, "%s/config", folder);
    region->device.registers = (uint32_t *)((char *)region->page + registers_offset(folder));
    region->device.config = region->config;
    if (hear && !device_uio(region->line.address, region->uio, sizeof region->uio))
        region->device.uio = region->uio;
    return 0;
}

void guest_region_close(struct guest_region *region) {
    if (region->memory)
        munmap(region->memory, region->mapped);
    if (region->page)
        munmap(region->page, PAGE);
    region->memory = region->page = NULL;
}

int guest_directory(const struct guest_region *region, const char *channel, struct shm_config *config) {
    struct shm_channel_entry entry;
    const char *field;
    uint64_t most = (region->size - SHM_DIRECTORY) / sizeof entry;
    for (uint32_t i = 0; i < most; i++) {
        /* Behind the last entry lies none: its name is empty. */
        if (shm_directory_entry(region->memory, region->size, i, &entry, &field))
            break;
        if (strcmp(entry.name, channel))
            continue;
        uint32_t lane = config->lane;
        *config = (struct shm_config){.kind = entry.kind, .flags = entry.flags, .offset = entry.offset, .size = entry.size,
                                      .max_message = entry.max_message, .lanes = entry.lanes, .lane = lane,
                                      .data_bell = entry.data_bell, .space_bell = entry.space_bell};
        return 0;
    }
    return fail("region %s has no channel %s", region->line.name, channel);
}

/* ---- ends -------------------------------------------------------------------------------------------------------------- */

struct wanted_end {
    const char *channel, *role;
    int lane, lock, known;
    struct guest_end_line *line;
};

/* The end is this process's as long as it has the file locked; guestlib's Python does the same. -1: another has it. */
static int lock_end(const struct guest_end_line *line) {
    char path[400];
    snprintf(path, sizeof path, "%s/ends", guest_paths.run);
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/ends/%s.%s.%u", guest_paths.run, line->channel, line->role, line->config.lane);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static int take_end(const struct guest_end_line *line, void *context) {
    struct wanted_end *wanted = context;
    if (strcmp(line->channel, wanted->channel))
        return 0;
    wanted->known |= 1;
    if (strcmp(line->role, wanted->role) || (wanted->lane >= 0 && (uint32_t)wanted->lane != line->config.lane))
        return 0;
    wanted->known |= 2;
    wanted->lock = lock_end(line);
    if (wanted->lock < 0)
        return 0;
    *wanted->line = *line;
    return 1;
}

static int role_of(const char *role) {
    return !strcmp(role, "send") ? END_SEND : !strcmp(role, "receive") ? END_RECEIVE : END_JOIN;
}

int guest_open(struct guest_end *end, const char *channel, const char *role, int lane, int hear) {
    *end = (struct guest_end){.lock = -1};
    struct wanted_end wanted = {.channel = channel, .role = role, .lane = lane, .lock = -1, .line = &end->line};
    int found = guest_ends(take_end, &wanted);
    if (found < 0)
        return -1;
    if (!found)
        return fail(wanted.known & 2   ? "channel %s: another process of this guest may %s already"
                    : wanted.known & 1 ? "channel %s: this guest may not %s; its cluster file says so, at channels"
                                       : "channel %s is none of this guest's, to %s on",
                    channel, role);
    end->lock = wanted.lock;
    if (guest_region_open(&end->region, end->line.region, hear) ||
        (!end->line.told && guest_directory(&end->region, channel, &end->line.config))) {
        guest_close(end);
        return -1;
    }
    int result = end_open_device(&end->end, end->region.memory, end->region.size, &end->line.config, role_of(role),
                                 &end->region.device, end->region.readonly);
    if (!result)
        return 0;
    fail("channel %s: %s", channel, guest_result(end, result));
    guest_close(end);
    return -1;
}

void guest_close(struct guest_end *end) {
    end_close(&end->end, 1);
    guest_region_close(&end->region);
    if (end->lock >= 0)
        close(end->lock);
    end->lock = -1;
}

const char *guest_result(const struct guest_end *end, int64_t result) {
    static char text[200];
    switch (result) {
    case SHM_E_CLOSED:
        return "its other end was closed";
    case SHM_E_GONE:
        return "its other end died";
    case SHM_E_TOO_LONG:
        snprintf(text, sizeof text, "the message is longer than max_message, %u bytes", end->end.config.max_message);
        return text;
    case SHM_E_CORRUPT:
    case SHM_E_CONFIG:
        snprintf(text, sizeof text, "a peer or the configuration spoiled its field %s", end->end.field);
        return text;
    case END_TIMEOUT:
        return "the time limit passed";
    case END_ROLE:
        return "this end can't do that";
    case END_SYSTEM:
        return strerror(errno);
    default:
        snprintf(text, sizeof text, "result %ld", (long)result);
        return text;
    }
}
