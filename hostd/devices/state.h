/*
 * state.h: what devices know, written out and taken back (docs/templates.md, "Devices").
 *
 * Each device goes through its fields once, in one function for both ways, so that neither can forget what the other has.
 * The bytes are in this machine's order and for this version of hostd alone. Nothing in them is believed: what doesn't fit the
 * device that takes it back makes the whole state wrong, with a reason, and the machine is then only good for closing.
 */
#ifndef HOSTD_DEVICES_STATE_H
#define HOSTD_DEVICES_STATE_H

#include <stddef.h>
#include <stdint.h>

#define STATE_WHY 200

struct state {
    int saving;
    uint8_t *at, *end;        /* saving with `at` NULL: only counted */
    uint64_t size;            /* bytes so far */
    char why[STATE_WHY];      /* why it is wrong; empty: it is not */
};

/* Saves the bytes at `field`, or fills them: with zeros once the state is wrong. */
void state_bytes(struct state *state, void *field, size_t size);
#define STATE(state, field) state_bytes(state, &(field), sizeof(field))

/* Of what both sides have anyway: saved, and looked at. Whether it is alike; it is up to the caller to say what isn't. */
int state_alike(struct state *state, const void *own, size_t size);

static inline int state_fine(const struct state *state) {
    return !state->why[0];
}

/* The first reason counts. */
__attribute__((format(printf, 2, 3))) void state_wrong(struct state *state, const char *format, ...);

#endif
