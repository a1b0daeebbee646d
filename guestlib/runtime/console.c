/* console.c: formatted output, collected in the call page until a line is whole. */
#include "guest.h"
#include "call.h"

static uint32_t filled; /* bytes of output in the call page's data, not written yet */
static unsigned char line[GUEST_CALL_DATA];

void console_flush(void) {
    if (!filled)
        return;
    memcpy((void *)call_page->data, line, filled);
    call_page->args[0] = filled;
    filled = 0;
    call(GUEST_CALL_CONSOLE);
}

static void put(char c) {
    line[filled++] = (unsigned char)c;
    if (c == '\n' || filled == sizeof line)
        console_flush();
}

void guest_write(const void *data, size_t size) {
    const char *bytes = data;
    for (size_t i = 0; i < size; i++)
        put(bytes[i]);
}

struct field {
    int left, zero, width, precision, size; /* size: 0 int, 1 long or size_t, 2 long long */
};

static void pad(char c, int count) {
    while (count-- > 0)
        put(c);
}

static void put_field(const struct field *field, const char *text, int size) {
    /* A sign stays in front of the zeros. */
    if (field->zero && !field->left && *text == '-') {
        put(*text++);
        pad('0', field->width - size);
        guest_write(text, (size_t)size - 1);
        return;
    }
    if (!field->left)
        pad(field->zero ? '0' : ' ', field->width - size);
    guest_write(text, (size_t)size);
    if (field->left)
        pad(' ', field->width - size);
}

static char *digits(char *end, uint64_t value, unsigned base) {
    do
        *--end = "0123456789abcdef"[value % base];
    while (value /= base);
    return end;
}

static void put_number(const struct field *field, uint64_t value, unsigned base, int negative) {
    char buffer[24], *end = buffer + sizeof buffer, *start = digits(end, value, base);
    if (negative)
        *--start = '-';
    put_field(field, start, (int)(end - start));
}

static void put_float(const struct field *field, double value) {
    char buffer[64], *end = buffer + sizeof buffer, *start = end;
    int negative = value < 0, precision = field->precision < 0 ? 6 : field->precision > 15 ? 15 : field->precision;
    uint64_t scale = 1;
    if (negative)
        value = -value;
    if (!(value < 1e18)) { /* Not a number either. */
        put_field(field, value != value ? "nan" : "huge", value != value ? 3 : 4);
        return;
    }
    for (int i = 0; i < precision; i++)
        scale *= 10;
    uint64_t whole = (uint64_t)value, rest = (uint64_t)((value - (double)whole) * (double)scale + 0.5);
    if (rest >= scale) {
        whole++;
        rest -= scale;
    }
    if (precision) {
        start = digits(end, rest, 10);
        while (end - start < precision)
            *--start = '0';
        *--start = '.';
    }
    start = digits(start, whole, 10);
    if (negative)
        *--start = '-';
    put_field(field, start, (int)(end - start));
}

static int number(const char **format, va_list *list) {
    int value = 0;
    if (**format == '*') {
        ++*format;
        return va_arg(*list, int);
    }
    while (**format >= '0' && **format <= '9')
        value = value * 10 + *(*format)++ - '0';
    return value;
}

static uint64_t argument(const struct field *field, va_list *list, int is_signed) {
    if (field->size)
        return va_arg(*list, uint64_t);
    return is_signed ? (uint64_t)(int64_t)va_arg(*list, int) : va_arg(*list, unsigned);
}

static const char *put_conversion(const char *format, va_list *list) {
    struct field field = {.precision = -1};
    for (; *format == '-' || *format == '0'; format++)
        *(*format == '-' ? &field.left : &field.zero) = 1;
    field.width = number(&format, list);
    if (*format == '.') {
        format++;
        field.precision = number(&format, list);
    }
    for (; *format == 'l' || *format == 'z'; format++)
        field.size++;
    switch (*format) {
    case 'd':
    case 'i': {
        int64_t value = (int64_t)argument(&field, list, 1);
        put_number(&field, value < 0 ? -(uint64_t)value : (uint64_t)value, 10, value < 0);
        break;
    }
    case 'u':
        put_number(&field, argument(&field, list, 0), 10, 0);
        break;
    case 'x':
        put_number(&field, argument(&field, list, 0), 16, 0);
        break;
    case 'p':
        guest_write("0x", 2);
        put_number(&field, (uint64_t)va_arg(*list, void *), 16, 0);
        break;
    case 'f':
        put_float(&field, va_arg(*list, double));
        break;
    case 'c': {
        char c = (char)va_arg(*list, int);
        put_field(&field, &c, 1);
        break;
    }
    case 's': {
        const char *text = va_arg(*list, const char *);
        int size = 0;
        while ((field.precision < 0 || size < field.precision) && text[size])
            size++;
        field.zero = 0;
        put_field(&field, text, size);
        break;
    }
    case '%':
        put('%');
        break;
    default: /* Shown as it stands; never a read behind the end. */
        put('%');
        return format;
    }
    return format + 1;
}

void guest_print_list(const char *format, va_list given) {
    va_list list;
    va_copy(list, given);
    while (*format) {
        if (*format != '%') {
            put(*format++);
            continue;
        }
        format = put_conversion(format + 1, &list);
    }
    va_end(list);
}

void guest_print(const char *format, ...) {
    va_list list;
    va_start(list, format);
    guest_print_list(format, list);
    va_end(list);
}

_Noreturn void guest_fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    guest_print_list(format, list);
    va_end(list);
    put('\n');
    guest_exit(1);
}
