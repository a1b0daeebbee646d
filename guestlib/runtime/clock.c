/* clock.c: time without an exit. The counter is tied to the host's clock by a call, again about once a second, because the
   host's clock is steered and the counter is not. */
#include "guest.h"
#include "call.h"

static const uint64_t RESYNC_NS = 1000000000;

static uint64_t base_ticks, base_ns; /* one moment, by counter and by clock */
static uint64_t last_ns;             /* never go back */
static uint64_t generation;          /* what the three are of: a clone may live on another day */

static uint64_t scale(uint64_t value, uint64_t multiply, uint64_t divide) {
    return (uint64_t)((unsigned __int128)value * multiply / divide);
}

uint64_t guest_ticks_to_ns(uint64_t ticks) {
    return guest_info()->tsc_khz ? scale(ticks, 1000000, guest_info()->tsc_khz) : 0;
}

uint64_t guest_ns_to_ticks(uint64_t ns) {
    return scale(ns, guest_info()->tsc_khz, 1000000);
}

static void synchronise(void) {
    uint64_t before = guest_ticks();
    call(GUEST_CALL_TIME);
    uint64_t after = guest_ticks(), host = call_page->args[0], middle = before + (after - before) / 2;
    uint64_t told = base_ns + guest_ticks_to_ns(middle - base_ticks), doubt = guest_ticks_to_ns(after - before);
    /* Within the call's own duration both agree: keep the base, or every synchronisation would be a small jump. */
    if (base_ns && told + doubt >= host && told <= host + doubt) {
        base_ns += guest_ticks_to_ns(middle - base_ticks);
        base_ticks = middle;
        return;
    }
    base_ticks = middle;
    base_ns = host;
}

uint64_t guest_now_ns(void) {
    if (!guest_info()->tsc_khz) {
        call(GUEST_CALL_TIME);
        return call_page->args[0];
    }
    if (generation != guest_generation()) {
        generation = guest_generation();
        base_ns = last_ns = 0;
    }
    uint64_t passed = guest_ticks_to_ns(guest_ticks() - base_ticks);
    if (!base_ns || passed > RESYNC_NS) {
        synchronise();
        passed = guest_ticks_to_ns(guest_ticks() - base_ticks);
    }
    if (base_ns + passed > last_ns)
        last_ns = base_ns + passed;
    return last_ns;
}

uint64_t guest_real_ns(void) {
    call(GUEST_CALL_TIME);
    return call_page->args[1];
}
