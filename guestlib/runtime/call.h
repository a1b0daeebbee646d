/* call.h: the runtime's own view of the call page. Not for programs. */
#ifndef CALL_H
#define CALL_H

#include "guest_abi.h"

static volatile struct guest_call *const call_page = (volatile struct guest_call *)GUEST_CALL_PAGE;

/* Arguments are in the page already; results are there afterwards. Returns guest_call.result. */
static inline int32_t call(uint32_t number) {
    call_page->number = number;
    __asm__ volatile("outl %0, %w1" : : "a"(number), "Nd"(GUEST_PORT_CALL) : "memory");
    return call_page->result;
}

void console_flush(void);

#endif
