/* state.c: see state.h. */
#include "state.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void state_wrong(struct state *state, const char *format, ...) {
    va_list values;
    if (state->why[0])
        return;
    va_start(values, format);
    vsnprintf(state->why, sizeof state->why, format, values);
    va_end(values);
}

/* Checked: there are as many bytes. */
void state_bytes(struct state *state, void *field, size_t size) {
    int there = state->at && size <= (size_t)(state->end - state->at);
    if (!there && (state->at || !state->saving))
        state_wrong(state, "it is too short");
    if (!state->saving)
        memset(field, 0, size);
    if (there && state_fine(state)) {
        if (state->saving)
            memcpy(state->at, field, size);
        else
            memcpy(field, state->at, size);
        state->at += size;
    }
    state->size += size;
}

int state_alike(struct state *state, const void *own, size_t size) {
    uint8_t part[64];
    int alike = 1;
    for (size_t at = 0; at < size; at += sizeof part) {
        size_t length = size - at < sizeof part ? size - at : sizeof part;
        if (state->saving)
            memcpy(part, (const uint8_t *)own + at, length);
        state_bytes(state, part, length);
        alike = alike && !memcmp(part, (const uint8_t *)own + at, length);
    }
    return alike;
}
