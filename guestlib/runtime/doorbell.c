/* doorbell.c: sleeping until a bell rings. HLT is not for ring 3, so a sleep is a call. */
#include "guest.h"
#include "call.h"

static uint64_t wait(uint32_t number, const uint32_t *bells, size_t count, uint64_t limit_ns) {
    if (count > GUEST_WAIT_BELLS)
        count = GUEST_WAIT_BELLS;
    memcpy((void *)call_page->data, bells, count * sizeof *bells);
    call_page->args[0] = limit_ns;
    call_page->args[1] = count;
    return call(number) == GUEST_OK ? call_page->args[0] : 0;
}

uint64_t guest_sleep(const uint32_t *bells, size_t count, const struct guest_look *looks, size_t words, uint64_t limit_ns) {
    console_flush();
    memcpy((void *)(call_page->data + GUEST_LOOKS), looks, words * sizeof *looks);
    call_page->args[2] = words;
    return wait(GUEST_CALL_SLEEP, bells, count, limit_ns);
}

uint64_t guest_wait(const uint32_t *bells, size_t count, uint64_t limit_ns) {
    console_flush();
    return wait(GUEST_CALL_WAIT, bells, count, limit_ns);
}
