/* doorbell.c: sleeping until a bell rings. HLT is not for ring 3, so a sleep is a call. */
#include "guest.h"
#include "call.h"

uint64_t guest_wait(const uint32_t *bells, size_t count, uint64_t limit_ns) {
    if (count > GUEST_WAIT_BELLS)
        count = GUEST_WAIT_BELLS;
    console_flush();
    memcpy((void *)call_page->data, bells, count * sizeof *bells);
    call_page->args[0] = limit_ns;
    call_page->args[1] = count;
    return call(GUEST_CALL_WAIT) == GUEST_OK ? call_page->args[0] : 0;
}
