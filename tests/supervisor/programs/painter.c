/* painter.c: draws a picture that says where each pixel is, reports, then paints over one row for ever, or (`once`) sleeps. */
#include "guest.h"

int main(int argc, char **argv) {
    const struct guest_framebuffer *picture = guest_framebuffer();
    if (!picture)
        guest_fail("no frame buffer");
    for (uint32_t y = 0; y < picture->height; y++)
        for (uint32_t x = 0; x < picture->width; x++)
            guest_framebuffer_row(picture, y)[x] = 0xff000000 | (x & 255) << 16 | (y & 255) << 8 | (x / 256 + y / 256 * 16);
    report("width", picture->width);
    report("height", picture->height);
    report("stride", picture->stride);
    if (argc > 1 && strcmp(argv[1], "once") == 0)
        guest_wait(NULL, 0, GUEST_NO_LIMIT);
    for (uint32_t n = 0;; n++) {
        for (uint32_t x = 0; x < picture->width; x++)
            guest_framebuffer_row(picture, 0)[x] = n;
        guest_wait(NULL, 0, 10000000);
    }
}
