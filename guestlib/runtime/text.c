/* text.c: strings. */
#include "guest.h"

size_t strlen(const char *text) {
    size_t size = 0;
    while (text[size])
        size++;
    return size;
}

int strncmp(const char *a, const char *b, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (a[i] != b[i] || !a[i])
            return (unsigned char)a[i] - (unsigned char)b[i];
    return 0;
}

int strcmp(const char *a, const char *b) {
    return strncmp(a, b, SIZE_MAX);
}

static unsigned digit(char c) {
    if (c >= '0' && c <= '9')
        return (unsigned)(c - '0');
    if ((c | 32) >= 'a' && (c | 32) <= 'z')
        return (unsigned)((c | 32) - 'a' + 10);
    return 99;
}

unsigned long strtoul(const char *text, char **end, int base) {
    unsigned long value = 0;
    while (*text == ' ')
        text++;
    if ((base == 0 || base == 16) && text[0] == '0' && (text[1] | 32) == 'x') {
        text += 2;
        base = 16;
    }
    if (base == 0)
        base = 10;
    while (digit(*text) < (unsigned)base)
        value = value * (unsigned long)base + digit(*text++);
    if (end)
        *end = (char *)text;
    return value;
}
