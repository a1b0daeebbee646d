/*
 * waiter.c: one process touches pages that the host takes its time over, another one counts its turns meanwhile. Says where its
 * pages are ("page GPA"), waits for a byte on standard input, touches them, and tells how that went.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 3, WORDS = PAGE / sizeof(uint64_t) };

static struct {
    volatile long turns;
    volatile int ended;
} * shared;

static void nap(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static uint64_t pattern(size_t at) { return at * 0x9e3779b97f4a7c15ul + 1; }

int main(void) {
    size_t size = PAGES * PAGE;
    shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t other = fork();
    if (other == 0) {
        for (; !shared->ended; nap(5))
            shared->turns++;
        _exit(0);
    }
    uint64_t *words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < PAGES * WORDS; i++)
        words[i] = pattern(i);
    int pagemap = open("/proc/self/pagemap", O_RDONLY);
    for (size_t page = 0; page < PAGES; page++) {
        uint64_t entry = 0;
        if (pread(pagemap, &entry, sizeof entry, (off_t)(((uintptr_t)words / PAGE + page) * sizeof entry)) != sizeof entry)
            return 1;
        printf("page 0x%lx\n", (entry & ((1ul << 55) - 1)) * PAGE);
    }
    printf("pages are known\n");
    fflush(stdout);
    for (char byte; read(0, &byte, 1) != 1;) /* Without a client the port is at its end. */
        nap(100);
    long wrong = 0, turns = shared->turns, began = now_ms();
    for (size_t i = 0; i < PAGES * WORDS; i++)
        wrong += words[i] != pattern(i);
    long took = now_ms() - began, more = shared->turns - turns;
    shared->ended = 1;
    waitpid(other, NULL, 0);
    printf("waited %ld ms, turns %ld, wrong %ld\n", took, more, wrong);
    return wrong != 0;
}
