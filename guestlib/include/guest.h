/*
 * guest.h: what a unikernel guest's program can use. Include this one; build with `hostd build prog.c -o prog.elf`.
 *
 * A program is an ordinary C program with a main(): the return value is the guest's exit code. There is no libc; what is
 * below is all there is, and a guest that needs a system call is in the wrong place. One thread, one vCPU.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "guest_abi.h"
#include "channel.h"

/* Ends the guest with `code` (0..255): 0 is success. */
_Noreturn void guest_exit(int code);

/* Ends the guest with code 1 after printing the text (as guest_print) and a newline. */
_Noreturn void guest_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Writes to the guest's console: d i u x c s p f %, with width, 0, -, precision, l, ll and z. */
void guest_print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void guest_print_list(const char *format, va_list list);
void guest_write(const void *data, size_t size);

/* report(name, value): a number or a text that stands in the run's JSON under this guest's "reports".
   A name given again replaces the value. Names and texts together: at most GUEST_CALL_DATA bytes, the text is cut. */
void guest_report_int(const char *name, int64_t value);
void guest_report_float(const char *name, double value);
void guest_report_text(const char *name, const char *value);
#define report(name, value)            \
    _Generic((value),                  \
        float: guest_report_float,     \
        double: guest_report_float,    \
        char *: guest_report_text,     \
        const char *: guest_report_text, \
        default: guest_report_int)(name, value)

/* The host's CLOCK_MONOTONIC, comparable between guests of one host to within an exit's time, and CLOCK_REALTIME; ns. */
uint64_t guest_now_ns(void);
uint64_t guest_real_ns(void);

/* The time stamp counter, for intervals; and how many ns so many ticks are. */
static inline uint64_t guest_ticks(void) { return __builtin_ia32_rdtsc(); }
uint64_t guest_ticks_to_ns(uint64_t ticks);
uint64_t guest_ns_to_ticks(uint64_t ns);

/* 64 random bits; seeded by the host, differently at every start. Not for keys. */
uint64_t guest_random(void);

/* What the host told this guest: name, memory, stack, seed, regions, channels, networks. */
const struct guest_info *guest_info(void);
const char *guest_name(void);

/* Which life of this memory it is: 0 in a guest that booted, another number in each that was made from a template. What
   must differ between clones (numbers drawn at random, the name, ends of channels) is to be had again when it changes. */
uint64_t guest_generation(void);

/* Sleeps until the generation is another: a template made meanwhile gives clones that go on from here. The new generation,
   or 0 once `limit_ns` has passed. */
uint64_t guest_await_clone(uint64_t limit_ns);

/* The value of an environment variable, or NULL. */
const char *guest_env(const char *name);

/* The region called `name`, or NULL: .address and .size say where its bytes are. Of one that was attached while the guest
   runs it is a copy that is good until the next call. */
const struct guest_region *guest_region(const char *name);

/* The picture that the host shows of this guest, or NULL if it has none (yet). Drawing in it costs no exit. */
const struct guest_framebuffer *guest_framebuffer(void);

/* What was added to this guest while it runs (docs/hotplug.md): `index` counts from 0; NULL behind the last one. What it
   returns is a copy that is good until the next call. */
const struct guest_plug *guest_plug(uint32_t index);
const struct guest_plug *guest_plug_named(const char *name);

/* A number that is another after each change of that, 0 before the first; and the bell that rings then, for guest_wait(). */
uint64_t guest_plug_generation(void);
uint32_t guest_plug_bell(void);

/* Sleeps until the generation is no longer `known`: the new one, or `known` once `limit_ns` has passed. */
uint64_t guest_await_plug(uint64_t known, uint64_t limit_ns);

/* Gives up what lies at the address of a plug, as the host may want (GUEST_PLUG_WANTED). To touch it afterwards is a fault.
   0, or GUEST_EINVAL where no plug begins there. */
int guest_give_up(uint64_t address);

/* Row `y` of it: pixels 0x00RRGGBB. */
static inline uint32_t *guest_framebuffer_row(const struct guest_framebuffer *framebuffer, uint32_t y) {
    return (uint32_t *)(framebuffer->address + (uint64_t)framebuffer->stride * y);
}

/* Memory: RAM in all; what guest_alloc() can still give. */
uint64_t guest_memory_size(void);
uint64_t guest_memory_free(void);

/* `size` bytes of zeroed RAM aligned to `align` (a power of two), or NULL. There is no free(): a guest is short-lived, and
   untouched memory costs nothing. */
void *guest_alloc(size_t size, size_t align);

/* Gives the whole pages inside these bytes back to the host until they are touched again; what they hold is lost (they read
   as zeros, in a clone as what its template held). Whole huge pages, where memory lies in such (`hugetlb`): others may take
   them then, and with none left, touching it again ends the guest. 0, or GUEST_EINVAL where memory is not this guest's own.
   An exit. */
int guest_give_back(void *address, size_t size);

/* Sleeps until one of the bells rings, or `limit_ns` has passed (GUEST_NO_LIMIT: never). Bit i of the result: bells[i]. */
uint64_t guest_wait(const uint32_t *bells, size_t count, uint64_t limit_ns);

/* Likewise, behind a fence that peers' processors pass, too (docs/rings.md); and doesn't sleep if one of the words (at most
   GUEST_WAIT_LOOKS) is not what it was: 0. */
uint64_t guest_sleep(const uint32_t *bells, size_t count, const struct guest_look *looks, size_t words, uint64_t limit_ns);

/* Rings a bell: an ioeventfd, no VMM process runs. */
static inline void guest_ring(uint32_t bell) {
    __asm__ volatile("outl %0, %w1" : : "a"(bell), "Nd"(GUEST_PORT_DOORBELL) : "memory");
}

/* The C library's, with its meaning. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t strlen(const char *text);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t size);
unsigned long strtoul(const char *text, char **end, int base);

#endif
