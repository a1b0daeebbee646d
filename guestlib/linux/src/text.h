/*
 * text.h: sentences for the console, and the small files of /run/hostd.
 */
#ifndef LINUX_TEXT_H
#define LINUX_TEXT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define HOSTD_RUN "/run/hostd"

/* Writes "hostd: ", the sentence and a newline to standard output, in one write. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

/* Reads a file of at most room - 1 bytes, whole, and terminates it: its size, or -errno (-EFBIG if it is longer). */
ssize_t read_small(const char *path, char *text, size_t room);

/* As read_small, with the memory made for it: up to 16 MiB. The caller frees *text. */
ssize_t read_whole(const char *path, char **text);

/* Cuts the newline and blanks behind a line off. */
void trim(char *text);

/* Writes all of it: 0 or -errno. */
int write_all(int fd, const void *data, size_t size);

uint64_t monotonic_ns(void);

#endif
