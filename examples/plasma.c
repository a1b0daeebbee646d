/*
 * plasma.c: a guest that draws: coloured waves that move across its frame buffer, with no exit but to sleep between frames.
 *
 * Argument: how many frames (0: for ever). Reports: frames.
 */
#include "guest.h"

enum { STEPS = 256, FRAME_NS = 40000000 };

static uint8_t wave[STEPS]; /* a parabola where others have a sine: 0 to 255 and back */

static void make_wave(void) {
    for (int i = 0; i < STEPS; i++) {
        int x = i % 128 - 64;
        int height = 127 - x * x * 127 / 4096;
        wave[i] = (uint8_t)(i < 128 ? 128 + height : 127 - height);
    }
}

static uint32_t colour(uint32_t x, uint32_t y, uint32_t t) {
    uint32_t value = wave[(x / 3 + t) & 255] + wave[(y / 2 - t) & 255] + wave[((x + y) / 4 + 2 * t) & 255];
    uint32_t red = wave[value / 3 & 255], green = wave[(value / 3 + 85) & 255], blue = wave[(value / 3 + 170) & 255];
    return red << 16 | green << 8 | blue;
}

int main(int argc, char **argv) {
    uint32_t count = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0;
    const struct guest_framebuffer *picture = guest_framebuffer();
    if (!picture)
        guest_fail("no frame buffer; give this guest one in the cluster file");
    make_wave();
    for (uint32_t t = 0; !count || t < count; t++) {
        for (uint32_t y = 0; y < picture->height; y++) {
            uint32_t *row = guest_framebuffer_row(picture, y);
            for (uint32_t x = 0; x < picture->width; x++)
                row[x] = colour(x, y, t);
        }
        report("frames", t + 1);
        guest_wait(NULL, 0, FRAME_NS);
    }
    return 0;
}
