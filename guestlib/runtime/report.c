/* report.c: numbers and texts for the run's JSON. */
#include "guest.h"
#include "call.h"

/* Checked: name and text are cut so that both fit the call page. */
static void send(uint32_t kind, const char *name, uint64_t value, const char *text) {
    size_t name_size = strlen(name), room = GUEST_CALL_DATA;
    if (name_size > GUEST_NAME_SIZE)
        name_size = GUEST_NAME_SIZE;
    room -= name_size;
    if (text)
        value = strlen(text) < room ? strlen(text) : room;
    console_flush();
    memcpy((void *)call_page->data, name, name_size);
    if (text)
        memcpy((void *)(call_page->data + name_size), text, value);
    call_page->args[0] = kind;
    call_page->args[1] = value;
    call_page->args[2] = name_size;
    call(GUEST_CALL_REPORT);
}

void guest_report_int(const char *name, int64_t value) {
    send(GUEST_REPORT_INT, name, (uint64_t)value, NULL);
}

void guest_report_float(const char *name, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    send(GUEST_REPORT_FLOAT, name, bits, NULL);
}

void guest_report_text(const char *name, const char *value) {
    send(GUEST_REPORT_TEXT, name, 0, value);
}
