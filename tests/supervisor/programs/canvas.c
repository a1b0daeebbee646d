/* Receives numbered messages, in order, and draws each one's number in every pixel of its picture; ends when one is missing. */
#include "guest.h"

int main(int argc, char **argv) {
    uint64_t count = argc > 1 ? strtoul(argv[1], NULL, 10) : 0, number;
    const struct guest_framebuffer *picture = guest_framebuffer();
    struct channel in;
    if (!picture || channel_open(&in, "numbers"))
        return 2;
    for (uint64_t i = 0; i < count; i++) {
        if (channel_receive(&in, &number, sizeof number, GUEST_NO_LIMIT) != sizeof number || number != i)
            guest_fail("message %lu is missing", i);
        if (i % 64 == 0)
            for (uint32_t y = 0; y < picture->height; y++)
                for (uint32_t x = 0; x < picture->width; x++)
                    guest_framebuffer_row(picture, y)[x] = (uint32_t)(number & 0xffffff);
    }
    report("received", (int64_t)count);
    return 0;
}
