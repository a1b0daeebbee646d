/* percentiles.h: what examples report of many measurements. */
#ifndef PERCENTILES_H
#define PERCENTILES_H

#include "guest.h"

static inline void sift(uint32_t *v, size_t root, size_t end) {
    for (size_t child; (child = 2 * root + 1) < end; root = child) {
        if (child + 1 < end && v[child] < v[child + 1])
            child++;
        if (v[root] >= v[child])
            return;
        uint32_t held = v[root];
        v[root] = v[child];
        v[child] = held;
    }
}

/* Heapsort: no memory, no worst case. */
static inline void sort(uint32_t *v, size_t count) {
    for (size_t i = count / 2; i-- > 0;)
        sift(v, i, count);
    for (size_t end = count; end-- > 1;) {
        uint32_t held = v[0];
        v[0] = v[end];
        v[end] = held;
        sift(v, 0, end);
    }
}

/* Reports a percentile of ticks, in ns. */
static inline void report_percentile(const char *name, const uint32_t *sorted, size_t count, unsigned per_mille) {
    report(name, guest_ticks_to_ns(sorted[(count - 1) * per_mille / 1000]));
}

#endif
